"""The page: static, strict, and in Chromium if there is one."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import time

import pytest
from playwright import sync_api

from spacetime.serving import keys, supervisor
from spacetime.serving.routes import page as page_lib
from spacetime.serving.service import Service
from spacetime.serving.settings import ServeSettings
from tests.helpers import chromium, stub_worker
from tests.helpers import service as service_lib
from tests.serving import app_test


def test_page_needs_no_other_site_and_no_inline_code():
  html = (page_lib.PAGE / 'index.html').read_text()
  scripts = ('app.js', 'events.js')
  script = ''.join((page_lib.PAGE / name).read_text() for name in scripts)
  assert not re.search(r'https?://', html + script)
  assert not re.search(r'<script(?![^>]*src)|<style|\son\w+=|\sstyle=', html)
  # Prompts are never parsed as HTML.
  assert not re.search(r'innerHTML|outerHTML|document\.write|eval\(', script)
  for name in re.findall(r"\$\('(\w+)'\)", script):
    assert f'id="{name}"' in html, name
  # Each field of the form has a label.
  fields = re.findall(r'<(?:input|select|textarea)[^>]*id="(\w+)"', html)
  labels = ''.join(re.findall(r'<label.*?</label>', html, re.DOTALL))
  for name in set(fields) - {'file'}:
    assert f'id="{name}"' in labels, name


@pytest.fixture(scope='module')
def browser():
  if chromium.find() is None:
    pytest.skip('needs Chromium: python -m tests.helpers.chromium')
  with sync_api.sync_playwright() as driver:
    browser = driver.chromium.launch(args=['--no-sandbox'], **chromium.find())
    yield browser
    browser.close()


@contextlib.contextmanager
def serving(folder, **options):
  """A service whose worker process is a stub."""
  settings = ServeSettings(
    state=str(folder), min_free_mb=1, max_steps=2000, sign='off', **options
  )
  watcher = supervisor.Supervisor(
    {'settings': dataclasses.asdict(settings)},
    folder,
    command=stub_worker.COMMAND,
  )
  service = Service(settings, watcher)
  with service_lib.running(service) as url:
    service.url = url
    while watcher.state != 'ready':
      time.sleep(0.05)
    yield service


@pytest.fixture(scope='module')
def site(tmp_path_factory, browser):
  with serving(tmp_path_factory.mktemp('page')) as service:
    service.browser = browser
    yield service


@pytest.fixture
def page(site):
  """The page at the width of a phone; errors of its scripts fail the test."""
  page = site.browser.new_page(viewport={'width': 360, 'height': 740})
  page.set_default_timeout(120_000)
  errors = []
  page.on('pageerror', lambda error: errors.append(str(error)))
  page.on(
    'console',
    lambda m: errors.append(m.text) if 'Content Security' in m.text else None,
  )
  page.goto(site.url)
  page.wait_for_selector('#model option', state='attached')
  yield page
  assert page.evaluate('document.body.scrollWidth') <= 360
  page.close()
  assert not errors, errors


def newest(site):
  """The newest job."""
  page, _ = site.jobs.page('local', after=None, limit=1, descending=True)
  return page[0]


def create(page, site, prompt, **fields):
  """Creates a video; returns its id."""
  before = site.jobs.ids()
  page.fill('#prompt', prompt)
  for name, value in fields.items():
    page.fill(f'#{name}', value)
  page.click('#submit')
  return arrived(page, site, before)


def arrived(page, site, before):
  """The id of a job that was not there before, once the page shows it."""
  while not site.jobs.ids() - before:
    page.wait_for_timeout(20)
    assert not page.inner_text('#error'), page.inner_text('#error')
  (job_id,) = site.jobs.ids() - before
  page.wait_for_selector(f'#{job_id}')
  return job_id


def finished(page, job_id):
  """The element of a completed video."""
  return page.wait_for_selector(f'#gallery > #{job_id}')


@pytest.mark.e2e
def test_create_watch_and_play(page, site):
  # By keyboard alone; the prompt is text, not markup.
  prompt, before = '<b>a red 3</b>', site.jobs.ids()
  page.focus('#prompt')
  page.keyboard.type(prompt)
  page.focus('#submit')
  page.keyboard.press('Enter')
  job_id = arrived(page, site, before)
  assert page.inner_text(f'#{job_id} p') == prompt
  page.wait_for_selector(f'#{job_id} .state:has-text(" of 8")')
  page.wait_for_selector(f'#{job_id} .state:has-text("s left")')
  card = finished(page, job_id)
  assert 'trusted, signed by me' in card.inner_text()
  video = card.query_selector('video')
  assert video.evaluate(
    """async (video) => {
      video.muted = true;
      await video.play();
      while (video.currentTime < 0.3) await new Promise(requestAnimationFrame);
      return [video.videoWidth, video.videoHeight];
    }"""
  ) == [64, 64]
  # After a reload it is still there, and its settings can be copied.
  page.reload()
  finished(page, job_id)
  page.click(f'#{job_id} button:has-text("Copy settings")')
  assert page.input_value('#prompt') == prompt


@pytest.mark.e2e
def test_gallery_actions(page, site):
  first = create(page, site, 'a green 5', seed='9')
  finished(page, first)
  derived = {}
  for label in ('Remix', 'Extend', 'Loop'):
    before = site.jobs.ids()
    page.click(f'#{first} button:text-is("{label}")')
    derived[label] = site.jobs.get(arrived(page, site, before))
  assert derived['Remix'].remixed_from == first
  assert derived['Remix'].params['seed'] == 9
  assert derived['Extend'].params['mode'] == 'extend'
  assert derived['Loop'].params['mode'] == 'loop'
  assert {job.prompt for job in derived.values()} == {'a green 5'}
  second = derived['Remix'].id
  finished(page, second)
  connecting = f'#{first} button:text-is("Connect")'
  page.click(connecting)
  assert page.get_attribute(connecting, 'aria-pressed') == 'true'
  page.keyboard.press('Escape')
  assert page.get_attribute(connecting, 'aria-pressed') == 'false'
  page.click(connecting)
  before = site.jobs.ids()
  page.click(f'#{second} button:text-is("Connect")')
  job = site.jobs.get(arrived(page, site, before))
  assert job.params['mode'] == 'connect'
  assert set(job.params['inputs']) == {'video', 'video2'}
  page.click(f'#{first} button:text-is("Delete")')
  assert site.jobs.get(first) is not None  # asked again
  page.click(f'#{first} button:text-is("Delete for good?")')
  page.wait_for_selector(f'#{first}', state='detached')
  assert site.jobs.get(first) is None


@pytest.mark.e2e
def test_queue_is_edited_and_cancelled(page, site):
  running = create(page, site, 'a blue 1', steps='2000')
  waiting = create(page, site, 'a blue 2', seconds='2')
  page.click(f'#{waiting} button:has-text("Edit")')
  page.keyboard.press('Escape')
  page.wait_for_selector(f'#{waiting} p:has-text("a blue 2")')
  page.click(f'#{waiting} button:has-text("Edit")')
  page.fill(f'#{waiting} input >> nth=0', 'a blue 7')
  page.keyboard.press('Enter')
  page.wait_for_selector(f'#{waiting} p:has-text("a blue 7")')
  assert site.jobs.get(waiting).prompt == 'a blue 7'
  assert site.jobs.get(waiting).params['seconds'] == 2
  for job_id in (waiting, running):
    page.click(f'#{job_id} button:has-text("Cancel")')
    page.wait_for_selector(f'#{job_id} .state:text-is("cancelled")')
  page.click(f'#{waiting} button:has-text("Remove")')
  page.wait_for_selector(f'#{waiting}', state='detached')


@pytest.mark.e2e
def test_refusal_is_shown(page, site):
  before = site.jobs.ids()
  page.fill('#prompt', 'a naked woman')
  page.click('#submit')
  page.wait_for_selector('#error:has-text("refused by policy standard")')
  page.fill('#prompt', 'a red 3')
  page.fill('#size', 'large')
  page.click('#submit')
  page.wait_for_selector('#error:has-text("expected WIDTHxHEIGHT")')
  assert site.jobs.ids() == before


@pytest.mark.e2e
def test_file_is_dropped(page, site):
  picture = app_test.png()
  page.evaluate(
    """(bytes) => {
      const transfer = new DataTransfer();
      const file = new File([new Uint8Array(bytes)], 'a.png',
        {type: 'image/png'});
      transfer.items.add(file);
      document.getElementById('drop').dispatchEvent(
        new DragEvent('drop', {dataTransfer: transfer, bubbles: true}));
    }""",
    list(picture),
  )
  page.wait_for_selector('#dropped:has-text("a.png")')
  assert page.eval_on_selector(
    '#preview img', 'i => i.decode().then(() => i.width)'
  )
  job = site.jobs.get(create(page, site, 'a red 3 moves up'))
  assert set(job.params['inputs']) == {'image'}
  assert page.query_selector('#preview img') is None
  # By keyboard, and removed again.
  with page.expect_file_chooser() as chooser:
    page.focus('#drop')
    page.keyboard.press('Enter')
  chooser.value.set_files(
    [{'name': 'b.png', 'mimeType': 'image/png', 'buffer': picture}]
  )
  page.wait_for_selector('#dropped:has-text("b.png")')
  page.click('#undrop')
  page.wait_for_selector('#dropped:has-text("Drop a picture")')
  # Neither a picture nor a video.
  with page.expect_file_chooser() as chooser:
    page.click('#drop')
  chooser.value.set_files(
    [{'name': 'c.txt', 'mimeType': 'text/plain', 'buffer': b'hello'}]
  )
  page.wait_for_selector('#error:has-text("c.txt: expected a picture")')
  assert page.query_selector('#preview img') is None


@pytest.mark.e2e
def test_warnings_order_and_focus(page, site):
  assert page.get_attribute('#prompt', 'placeholder') == 'such as: a red 3'
  page.click('#random')
  seed = page.input_value('#seed')
  running = create(page, site, 'a blue 1', steps='2000')
  waiting = create(page, site, 'a dragon', steps='')
  page.wait_for_selector(f'#{waiting} .warning:has-text("knows no dragon")')
  ids = page.locator('#queue > li').evaluate_all('li => li.map(x => x.id)')
  assert ids[-2:] == [running, waiting]
  page.wait_for_selector(f'#{waiting} .small:has-text("seed {seed}")')
  # The keyboard stays in the queue when an entry changes or goes.
  page.click(f'#{running} button:text-is("Cancel")')
  page.wait_for_selector(f'#{running} .state:text-is("cancelled")')
  focused = 'document.activeElement.closest("li")?.id'
  assert page.evaluate(focused) == running
  page.keyboard.press('Enter')  # Remove
  page.wait_for_selector(f'#{running}', state='detached')
  assert page.evaluate(focused) == waiting
  finished(page, waiting)
  assert site.jobs.get(waiting).params['warnings']


@pytest.mark.e2e
def test_timeline(page, site):
  page.click('summary')
  page.fill('#seconds', '9')
  for i, prompt in enumerate(('a red 0 bounces', 'a blue 7')):
    page.click('#add_time')
    page.keyboard.type(prompt)
    assert page.locator('#strip > *').count() == i + 1
  before = site.jobs.ids()
  page.click('#submit')
  job_id = arrived(page, site, before)
  params = site.jobs.get(job_id).params
  assert params['prompt_schedule'] == '0: a red 0 bounces; 4: a blue 7'
  card = finished(page, job_id)
  page.click(f'#{job_id} .strip button:has-text("a blue 7")')
  # The stub's clip is shorter than 4 seconds: it stands at its end.
  assert card.query_selector('video').evaluate('v => v.currentTime') > 1
  page.reload()
  page.click(f'#{job_id} button:has-text("Copy settings")')
  assert page.locator('#times li').count() == 2


@pytest.mark.e2e
@pytest.mark.parametrize('has_workers', [True, False])
def test_seven_tabs(site, has_workers):
  """A browser opens six connections to a server, and each tab needs some."""
  context = site.browser.new_context()
  context.set_default_timeout(60_000)
  if not has_workers:
    # Of several tabs of a window, one is visible.
    context.add_init_script(
      """delete window.SharedWorker;
      let hidden = false;
      Object.defineProperty(document, 'hidden', {get: () => hidden});
      window.hide = (value) => {
        hidden = value;
        document.dispatchEvent(new Event('visibilitychange'));
      };"""
    )
  tabs = []
  for _ in range(7):
    if tabs and not has_workers:
      tabs[-1].evaluate('hide(true)')
    tabs.append(context.new_page())
    tabs[-1].goto(site.url)
    tabs[-1].wait_for_selector('#model option', state='attached')
  job_id = create(tabs[-1], site, 'a red 3')
  finished(tabs[-1], job_id)
  for tab in tabs:
    if not has_workers:
      tabs[-1].evaluate('hide(true)')
      tab.evaluate('hide(false)')
    card = finished(tab, job_id)
    assert card.query_selector('video').evaluate(
      """async (video) => {
        video.muted = true;
        await video.play();
        while (!video.currentTime) await new Promise(requestAnimationFrame);
        return video.videoWidth;
      }"""
    )
    if not has_workers:
      tab.evaluate('hide(true)')
  # A tab that is closed is not missed; what one deletes goes from all.
  tabs.pop(0).close()
  if not has_workers:
    tabs[0].evaluate('hide(false)')
  site.delete('local', job_id)
  tabs[0].wait_for_selector(f'#{job_id}', state='detached')
  context.close()


@pytest.mark.e2e
def test_key_expires_in_all_tabs(tmp_path, browser):
  path = tmp_path / 'keys.json'
  ann, bob = (keys.add(path, name, days=1) for name in ('ann', 'bob'))
  with serving(tmp_path / 'state', api_keys=str(path)) as site:
    context = browser.new_context()
    context.set_default_timeout(60_000)
    tabs = [context.new_page() for _ in range(2)]
    for tab in tabs:
      tab.goto(site.url)
      tab.wait_for_selector('#login')
    tabs[0].fill('#key', ann)
    tabs[0].press('#key', 'Enter')
    first = create(tabs[0], site, 'a red 3')
    tabs[1].reload()
    finished(tabs[1], first)
    entries = json.loads(path.read_text())
    entries[0]['expires'] = 1
    path.write_text(json.dumps(entries))
    for tab in tabs:
      tab.wait_for_selector('#login')
    # Logging in serves the other tab as well, and shows nothing of Ann's.
    tabs[1].fill('#key', bob)
    tabs[1].press('#key', 'Enter')
    second = create(tabs[1], site, 'a blue 7')
    for tab in tabs:
      finished(tab, second)
      assert not tab.is_visible('#login')
      assert tab.query_selector(f'#{first}') is None
    context.close()


@pytest.mark.e2e
def test_worker_is_killed(page, site):
  job_id = create(page, site, 'a yellow 4')
  page.wait_for_selector(f'#{job_id} .state:has-text(" of 8")')
  os.kill(site.supervisor.pid, signal.SIGKILL)
  finished(page, job_id)
  assert site.jobs.get(job_id).attempt == 2
