'use strict';

// Everything that comes from a prompt or a file is set as textContent.
const $ = (id) => document.getElementById(id);
const FIELDS = ['size', 'seconds', 'seed', 'steps', 'negative_prompt',
  'image_at', 'strength', 'mode'];
const EDITABLE = ['size', 'seconds', 'seed', 'steps'];
const videos = new Map();
let models = new Map();
let isReady = false;     // whether the worker runs
let dropped = null;      // a File
let connectFrom = null;  // id of the first of two videos
let stream = null;       // port of the worker that all tabs share
let hiding = null;       // timer of the hint
const MODES = {
  still: 'still picture', image: 'from a picture', extend: 'extension',
  extend_backward: 'extension backwards', loop: 'loop', connect: 'connection',
  inpaint: 'inpainting', outpaint: 'outpainting', edit: 'edit',
};
const FRAGILE = 'fragile: lost when the file is compressed again';
const DROP = 'Drop a picture or video here, or click';

function element(tag, text, attributes) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  Object.entries(attributes || {}).forEach(([k, v]) => node.setAttribute(k, v));
  return node;
}

function button(text, action, label) {
  const node = element('button', text, {type: 'button'});
  if (label) node.setAttribute('aria-label', label);
  node.addEventListener('click', action);
  return node;
}

// A second press is needed; it is offered until the focus leaves the button.
function sureButton(text, question, action) {
  const node = button(text, () => {
    if (node.textContent === question) action();
    else node.textContent = question;
  });
  node.addEventListener('blur', () => { node.textContent = text; });
  return node;
}

async function call(method, path, body) {
  const options = {method, credentials: 'same-origin', headers: {}};
  if (body instanceof FormData) options.body = body;
  else if (body) {
    options.body = JSON.stringify(body);
    options.headers['content-type'] = 'application/json';
  }
  const response = await fetch(path, options);
  const answer = await response.json();
  if (response.status === 401) $('login').hidden = false;
  if (!response.ok) throw new Error(answer.error.message);
  return answer;
}

async function attempt(action) {
  $('error').textContent = '';
  try {
    return await action();
  } catch (error) {
    $('error').textContent = error.message;
    $('error').scrollIntoView({block: 'nearest'});  // it may be far above
    return null;
  }
}

// -- creating ----------------------------------------------------------------

function settings() {
  const values = {};
  FIELDS.forEach((name) => {
    const value = $(name).value.trim();
    if (value !== '') values[name] = value;
  });
  if ($('attest').checked) values.attest = 'true';
  const pairs = timeline().filter(([, text]) => text);
  if (pairs.length) {
    values.prompt_schedule = pairs
      .map(([time, text]) => `${time}: ${text}`).join('; ');
  } else values.prompt = $('prompt').value;
  values.model = $('model').value;
  return values;
}

function timeline() {
  return [...$('times').children].map((row) => {
    const [time, text] = row.querySelectorAll('input');
    return [time.value.trim() || '0', text.value.trim()];
  });
}

async function create(event) {
  event.preventDefault();
  const values = settings();
  let path = '/v1/videos';
  const form = new FormData();
  if (dropped) {
    const isVideo = dropped.type.startsWith('video/');
    form.append(isVideo ? 'video' : 'input_reference', dropped);
    if (isVideo && !values.mode) values.mode = 'edit';
    if (isVideo && values.mode === 'edit') path = '/v1/videos/edits';
  }
  Object.entries(values).forEach(([k, v]) => form.append(k, v));
  $('submit').disabled = true;
  const video = await attempt(() => call('POST', path, form));
  $('submit').disabled = false;
  if (video) {
    show(video);
    drop(null);
  }
}

function derive(path, values) {
  attempt(async () => {
    const video = await call('POST', path, values);
    show(video);
    hint(`Queued: ${about(video)}`, 5000);
  });
}

function promptOf(video) {
  const text = $('prompt').value.trim();
  return text || video.prompt;
}

function remix(video) {
  derive(`/v1/videos/${video.id}/remix`, {prompt: promptOf(video)});
}

function extend(video) {
  derive('/v1/videos/extensions', {
    prompt: promptOf(video), seconds: $('seconds').value.trim() || '1',
    video: {id: video.id}, ...steps(video),
  });
}

function loop(video) {
  derive('/v1/videos', {
    prompt: promptOf(video), mode: 'loop', video: {id: video.id},
    size: video.size, ...steps(video),
  });
}

function connect(video) {
  if (connectFrom === null) {
    chooseFirst(video.id);
    return;
  }
  const first = connectFrom;
  chooseFirst(null);
  if (first === video.id) return;
  derive('/v1/videos', {
    prompt: promptOf(video), mode: 'connect', video: {id: first},
    video2: {id: video.id}, size: video.size, ...steps(video),
  });
}

function chooseFirst(id) {
  connectFrom = id;
  document.querySelectorAll('#gallery > li').forEach((node) => {
    node.querySelector('.connect').setAttribute('aria-pressed', node.id === id);
  });
  hint(id === null ? ''
    : 'Choose Connect on the video that follows, or here again to stop.');
}

function hint(text, milliseconds) {
  clearTimeout(hiding);
  $('hint').textContent = text;
  $('hint').hidden = !text;
  if (milliseconds) hiding = setTimeout(() => hint(''), milliseconds);
}

function steps(video) {
  const value = $('steps').value.trim() || video.settings.steps;
  return value ? {steps: value} : {};
}

function copy(video) {
  FIELDS.forEach((name) => {
    const value = video.settings[name];
    $(name).value = value === undefined ? '' : value;
  });
  $('size').value = video.size;
  $('times').replaceChildren();
  const pairs = schedule(video);
  pairs.forEach(([time, text]) => addTime(time, text));
  $('prompt').value = pairs.length ? '' : video.prompt;
  showTimes();
  $('prompt').focus();
}

// Pairs (seconds, prompt) of a video with a timeline.
function schedule(video) {
  const text = video.settings.prompt_schedule;
  if (!text) return [];
  return text.split(/;\s*(?=[\d.]+\s*:)/).map((part) => {
    const at = part.indexOf(':');
    return [part.slice(0, at).trim(), part.slice(at + 1).trim()];
  });
}

// -- files -------------------------------------------------------------------

function drop(file) {
  $('error').textContent = '';
  if (file && !/^(image|video)\//.test(file.type)) {
    $('error').textContent = `${file.name}: expected a picture or a video.`;
    file = null;
  }
  dropped = file;
  $('preview').querySelectorAll('*').forEach(
    (node) => URL.revokeObjectURL(node.src));
  $('preview').replaceChildren();
  if (file) {
    const tag = file.type.startsWith('video/') ? 'video' : 'img';
    $('preview').append(element(tag, undefined,
      {src: URL.createObjectURL(file), alt: '', preload: 'auto'}));
  } else {
    $('file').value = '';
  }
  $('undrop').hidden = !file;
  showDropped();
}

// The name of the file, and what becomes of it.
function showDropped() {
  const isEdited = dropped && dropped.type.startsWith('video/')
    && !$('mode').value;
  $('dropped').textContent = !dropped ? DROP : dropped.name
    + (isEdited ? ' will be edited; Mode can also extend or loop it' : '');
}

function listenToDrops() {
  const zone = $('drop');
  zone.addEventListener('click', () => $('file').click());
  zone.addEventListener('keydown', (event) => {
    if (['Enter', ' '].includes(event.key)) {
      event.preventDefault();
      $('file').click();
    }
  });
  zone.addEventListener('dragover', (event) => {
    event.preventDefault();
    zone.classList.add('over');
  });
  zone.addEventListener('dragleave', () => zone.classList.remove('over'));
  zone.addEventListener('drop', (event) => {
    event.preventDefault();
    zone.classList.remove('over');
    drop(event.dataTransfer.files[0] || null);
  });
  $('file').addEventListener('change', () => drop($('file').files[0] || null));
  $('undrop').addEventListener('click', () => {
    drop(null);
    zone.focus();
  });
}

function addTime(seconds, prompt) {
  const row = element('li');
  const last = $('times').lastElementChild;
  const time = element('input', undefined,
    {size: '4', inputmode: 'decimal', 'aria-label': 'Seconds'});
  const next = last ? Number(last.querySelector('input').value) + 4 : 0;
  time.value = seconds === undefined ? next : seconds;
  const text = element('input', undefined, {'aria-label': 'Prompt from then'});
  text.value = prompt || '';
  row.append(time, ' s ', text, button('Remove', () => {
    row.remove();
    showTimes();
  }));
  row.addEventListener('input', showTimes);
  $('times').append(row);
  showTimes();
  return text;
}

function showTimes() {
  const pairs = timeline();
  $('prompt').required = !pairs.length;
  $('seconds').required = Boolean(pairs.length);
  const end = Number($('seconds').value) || 0;
  $('strip').replaceChildren(...strip(pairs, end).map(
    ([, text, share]) => wide(element('span', text || '...'), share)));
}

// Triples (seconds, prompt, share of the whole).
function strip(pairs, end) {
  return pairs.map(([time, text], i) => {
    const until = i + 1 < pairs.length ? Number(pairs[i + 1][0]) : end;
    return [time, text, Math.max(until - Number(time), 1) || 1];
  });
}

function wide(node, share) {
  node.style.flexGrow = share;
  return node;
}

// -- showing -----------------------------------------------------------------

function show(video) {
  const before = videos.get(video.id);
  // An answer that was overtaken by the event of its end.
  if (before && hasEnded(before) && !hasEnded(video)) return;
  videos.set(video.id, video);
  const ended = video.status === 'completed';
  if (ended && before && before.status === 'completed') return;
  const old = document.getElementById(video.id);
  const node = ended ? card(video) : entry(video, old);
  if (node === old) return;
  const isFocused = old && old.contains(document.activeElement);
  const list = ended ? $('gallery') : $('queue');
  if (old && old.parentNode === list) {
    old.replaceWith(node);
  } else {
    if (old) old.remove();
    // The queue is in the order of its work, the gallery begins with the newest.
    if (ended) list.prepend(node);
    else list.append(node);
  }
  if (isFocused) focusIn(node);
}

// Keyboard users stay where they are when an element is replaced or removed.
function focusIn(node) {
  const next = node && node.querySelector('button');
  (next || $('prompt')).focus({preventScroll: true});
}

function about(video) {
  const mode = MODES[video.settings.mode];
  return [...(mode ? [mode] : []), video.size, `${video.seconds} s`,
    `seed ${video.settings.seed || 0}`].join(', ');
}

function warnings(video) {
  return (video.warnings || []).map(
    (text) => element('p', `Warning: ${text}`, {class: 'small warning'}));
}

function hasEnded(video) {
  return ['completed', 'failed'].includes(video.status);
}

function entry(video, old) {
  // A queued entry that is being edited stays as it is.
  if (old && old.querySelector('input')
      && video.status === 'queued') return old;
  const node = old && old.parentNode === $('queue') ? old : element('li');
  node.id = video.id;
  const state = old && old.dataset.status === video.status;
  const isFocused = node.contains(document.activeElement);
  if (!state) {
    node.replaceChildren(element('p', video.prompt),
      element('p', about(video), {class: 'small'}), ...warnings(video),
      element('p', '', {class: 'small state', role: 'status'}));
    if (video.status === 'in_progress') {
      node.append(element('progress', '', {max: '100'}));
    }
    node.append(controls(video));
    node.dataset.status = video.status;
    if (isFocused) focusIn(node);
  }
  const left = video.seconds_left ? `, ${video.seconds_left} s left` : '';
  const steps = video.steps_total
    ? `, step ${video.steps_done} of ${video.steps_total}` : '';
  const isCancelled = video.error && video.error.code === 'cancelled';
  const text = isCancelled ? 'cancelled'
    : video.error ? `${video.status}: ${video.error.message}`
      : `${video.status === 'queued' ? 'queued' : video.stage}${steps}${left}`;
  node.querySelector('.state').textContent = text;
  node.querySelector('.state').classList.toggle(
    'failed', Boolean(video.error) && !isCancelled);
  const bar = node.querySelector('progress');
  if (bar) bar.value = video.progress;
  return node;
}

function controls(video) {
  const row = element('div', undefined, {class: 'buttons'});
  const path = `/v1/videos/${video.id}`;
  if (video.status === 'queued') row.append(button('Edit', () => edit(video)));
  if (video.status !== 'failed') {
    row.append(button('Cancel', () => attempt(
      async () => show(await call('POST', `${path}/cancel`)))));
  } else {
    row.append(button('Remove', () => remove(video)));
  }
  return row;
}

function edit(video) {
  const node = document.getElementById(video.id);
  const form = element('form', undefined, {'aria-label': 'Edit'});
  const inputs = {};
  const defaults = defaultsOf(video.model);
  const add = (name, label, value, size) => {
    const input = element('input', undefined,
      {size, placeholder: defaults[name] ?? ''});
    input.value = value === undefined ? '' : value;
    const wrapper = element('label', `${label} `);
    wrapper.append(input);
    form.append(wrapper);
    inputs[name] = [input, input.value];
  };
  if (!video.settings.prompt_schedule) add('prompt', 'Prompt', video.prompt, 30);
  EDITABLE.forEach((name) => add(
    name, name[0].toUpperCase() + name.slice(1), video.settings[name], 6));
  const close = (changed) => {
    node.replaceChildren();
    show(changed || videos.get(video.id));
  };
  form.append(element('button', 'Save'), button('Discard', () => close()));
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const changes = {};
    Object.entries(inputs).forEach(([name, [input, before]]) => {
      if (input.value !== before) changes[name] = input.value;
    });
    attempt(async () => close(
      await call('PATCH', `/v1/videos/${video.id}`, changes)));
  });
  form.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') close();
  });
  node.replaceChildren(form);
  node.removeAttribute('data-status');
  form.querySelector('input').focus();
}

function remove(video) {
  attempt(async () => {
    await call('DELETE', `/v1/videos/${video.id}`);
    forget(video.id);
  });
}

function forget(id) {
  videos.delete(id);
  const node = document.getElementById(id);
  if (!node) return;
  const next = node.nextElementSibling || node.previousElementSibling;
  const isFocused = node.contains(document.activeElement);
  node.remove();
  if (isFocused) focusIn(next);
}

function card(video) {
  const node = element('li', undefined, {id: video.id});
  const path = `/v1/videos/${video.id}/content`;
  const isPicture = video.settings.mode === 'still'
    || ['png', 'gif'].includes(video.settings.format);
  const view = isPicture
    ? element('img', undefined, {src: path, alt: video.prompt})
    : element('video', undefined, {
      src: path, controls: '', loop: '', preload: 'metadata',
      poster: `${path}?variant=thumbnail`, 'aria-label': video.prompt,
    });
  const row = element('div', undefined, {class: 'buttons'});
  const connecting = button('Connect', () => connect(video));
  connecting.className = 'connect';
  connecting.setAttribute('aria-pressed', video.id === connectFrom);
  row.append(
    button('Copy settings', () => copy(video)),
    button('Remix', () => remix(video)),
    button('Extend', () => extend(video)),
    connecting,
    button('Loop', () => loop(video)),
    element('a', 'Download', {href: path, download: ''}),
    sureButton('Delete', 'Delete for good?', () => remove(video)));
  const pairs = schedule(video);
  node.append(view, pairs.length ? seeking(video, view, pairs)
    : element('p', video.prompt),
  element('p', about(video), {class: 'small'}), ...warnings(video),
  provenance(video), row);
  return node;
}

// The timeline of a long video: each prompt leads to its time.
function seeking(video, view, pairs) {
  const node = element('div', undefined, {class: 'strip'});
  node.append(...strip(pairs, Number(video.seconds)).map(
    ([time, text, share]) => wide(button(text, () => {
      view.currentTime = Number(time);
    }, `${time} s: ${text}`), share)));
  return node;
}

function provenance(video) {
  const facts = video.provenance;
  const mark = facts && facts.watermark_state === 'fragile' ? FRAGILE
    : facts && facts.watermark_state;
  const text = facts
    ? `Content credentials: ${facts.state}, signed by ${facts.issuer}; `
      + `watermark ${facts.watermark || 'none'}`
      + `${mark ? ` (${mark})` : ''}`
    : 'Not signed.';
  return element('p', text, {class: 'small'});
}

// -- the service -------------------------------------------------------------

// Events of all videos, by one stream for all tabs: see events.js.
function follow(message) {
  if (!stream) stream = window.SharedWorker ? sharedStream() : ownStream();
  stream.postMessage(message);
}

function sharedStream() {
  const {port} = new SharedWorker('/page/events.js');
  port.addEventListener('message', (event) => receive(event.data));
  port.start();
  // A page that is left may come back as it was.
  window.addEventListener('pagehide', () => port.postMessage('leave'));
  window.addEventListener('pageshow', (event) => {
    if (event.persisted) port.postMessage('follow');
  });
  return port;
}

// Browsers without shared workers: a stream while the tab is visible.
function ownStream() {
  let source = null;
  const restart = () => {
    if (source) source.close();
    source = null;
    if (document.hidden) return;
    source = new EventSource('/v1/events');
    source.addEventListener('snapshot',
      (event) => receive({type: 'snapshot', ids: JSON.parse(event.data).ids}));
    source.addEventListener('video',
      (event) => receive({type: 'video', video: JSON.parse(event.data)}));
    source.addEventListener('deleted',
      (event) => receive({type: 'deleted', id: JSON.parse(event.data).id}));
    source.addEventListener('error', () => {
      if (source.readyState === EventSource.CLOSED) receive({type: 'closed'});
    });
  };
  document.addEventListener('visibilitychange', restart);
  return {postMessage: restart};
}

function receive(message) {
  if (message.type === 'video') show(message.video);
  else if (message.type === 'deleted') forget(message.id);
  else if (message.type === 'closed') resume();
  else {  // a stream begins, after a login in another tab, say
    [...videos.keys()].filter((id) => !message.ids.includes(id))
      .forEach(forget);
    $('login').hidden = true;
  }
}

// The stream was refused: the key has expired, or a proxy knows no server.
async function resume() {
  try {
    await call('GET', '/v1/models');
    setTimeout(() => follow('follow'), 1000);
  } catch (error) {
    if ($('login').hidden) setTimeout(resume, 5000);
  }
}

async function health() {
  try {
    const answer = await (await fetch('/health')).json();
    if (answer.status === 'ok' && !isReady) {
      loadModels().catch(() => {});  // start() shows errors
    }
    isReady = answer.status === 'ok';
    $('health').textContent = isReady ? 'ready'
      : `${answer.status}${answer.failure ? `: ${answer.failure}` : ''}`;
  } catch (error) {
    $('health').textContent = 'the server does not answer';
  }
}

async function start(message) {
  if (!await attempt(loadModels)) return;
  $('login').hidden = true;
  follow(message);
}

async function loadModels() {
  const answer = await call('GET', '/v1/models');
  const chosen = $('model').value;
  models = new Map(answer.data.map((model) => [model.id, model]));
  $('model').replaceChildren(
    ...[...models.keys()].map((name) => element('option', name)));
  if (models.has(chosen)) $('model').value = chosen;
  showDefaults();
  return true;
}

// What an empty field means, once the worker has read the model.
function showDefaults() {
  const name = $('model').value;
  const {size, seconds, steps: count} = defaultsOf(name);
  Object.entries({size, seconds, steps: count}).forEach(([field, value]) => {
    $(field).placeholder = value ?? 'default';
  });
  const {example} = models.get(name) || {};
  $('prompt').placeholder = example ? `such as: ${example}`
    : 'What the video shows';
}

function defaultsOf(name) {
  const model = models.get(name) || {};
  return {size: model.size, seconds: model.seconds, seed: 0,
    steps: (model.sampling || {}).steps};
}

$('create').addEventListener('submit', create);
$('add_time').addEventListener('click', () => addTime().focus());
$('seconds').addEventListener('input', showTimes);
$('model').addEventListener('change', showDefaults);
$('mode').addEventListener('change', showDropped);
$('random').addEventListener('click', () => {
  [$('seed').value] = crypto.getRandomValues(new Uint32Array(1));
});
$('login').addEventListener('submit', (event) => {
  event.preventDefault();
  attempt(async () => {
    await call('POST', '/v1/session', {key: $('key').value});
    $('key').value = '';
    await start('log in');
  });
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && connectFrom !== null) chooseFirst(null);
});
listenToDrops();
health();
setInterval(health, 5000);
start('follow');
