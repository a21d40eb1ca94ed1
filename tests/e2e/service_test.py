"""The service with a model, driven by OpenAI's official client."""

import base64
import http.server
import io
import pathlib
import threading
import time
import warnings

import openai
import pytest
from PIL import Image

from spacetime.pipeline import progress
from spacetime.pipeline.pipeline import Pipeline
from spacetime.provenance import manifest
from spacetime.safety import frames as frames_lib
from spacetime.safety.policy import CheckError
from spacetime.serving import webhooks
from spacetime.serving.settings import ServeSettings
from spacetime.serving.worker import Worker
from tests.helpers import service as service_lib

FAST = {'steps': 2}


class Receiver(http.server.BaseHTTPRequestHandler):
  """Keeps what is posted."""

  received: list

  def log_message(self, *_):
    pass

  def do_POST(self):  # noqa: N802 (http.server's)
    body = self.rfile.read(int(self.headers['Content-Length']))
    self.received.append((dict(self.headers), body))
    self.send_response(200)
    self.end_headers()


@pytest.fixture(scope='module')
def service(tmp_path_factory):
  settings = {
    'state': str(tmp_path_factory.mktemp('service')),
    'min_free_mb': 1,
    'webhook_hosts': '127.0.0.1',
  }
  pipelines = {'digits': Pipeline('digits', progress=False)}
  worker = Worker(ServeSettings(**settings), name='w', pipelines=pipelines)
  supervisor = service_lib.ThreadSupervisor(worker)
  service = service_lib.make(
    settings.pop('state'), supervisor=supervisor, **settings
  )
  with service_lib.running(service) as url:
    service.url = url
    yield service


@pytest.fixture(scope='module')
def client(service):
  warnings.simplefilter('ignore', DeprecationWarning)  # of client.videos
  return openai.OpenAI(
    base_url=f'{service.url}/v1', api_key='none', max_retries=0
  )


@pytest.fixture(scope='module')
def video(client):
  """A finished video."""
  video = client.videos.create_and_poll(
    prompt='a red 3 moves to the right',
    model='digits',
    seconds='2',
    size='64x64',
    extra_body={'steps': '2', 'seed': '7'},
    poll_interval_ms=50,
  )
  assert video.status == 'completed', video.error
  return video


def poll(client, video):
  video = client.videos.poll(video.id, poll_interval_ms=50)
  assert video.status == 'completed', video.error
  return video


def png(color=(200, 0, 0)):
  buffer = io.BytesIO()
  Image.new('RGB', (64, 64), color).save(buffer, 'PNG')
  return buffer.getvalue()


def report(service, tmp_path, data, suffix='.mp4'):
  path = pathlib.Path(tmp_path) / f'downloaded{suffix}'
  path.write_bytes(data)
  return manifest.verify(path, roots=[service.signing_key.root])


def test_video_object(client, video):
  assert (video.object, video.progress, video.seconds) == (
    'video',
    100,
    '2.125',
  )
  assert (video.size, video.model) == ('64x64', 'digits')
  assert video.expires_at > video.completed_at >= video.created_at
  assert video.error is None and video.steps_done == video.steps_total == 2


def test_contents(service, client, video, tmp_path):
  content = client.videos.download_content
  mp4 = content(video.id).read()
  assert report(service, tmp_path, mp4).state == 'trusted'
  webp = content(video.id, variant='thumbnail').read()
  assert Image.open(io.BytesIO(webp)).format == 'WEBP'
  sheet = content(video.id, variant='spritesheet').read()
  assert Image.open(io.BytesIO(sheet)).format == 'JPEG'
  headers = {'range': 'bytes=4-7'}
  part = content(video.id, extra_headers=headers).read()
  assert part == mp4[4:8] == b'ftyp'
  with pytest.raises(openai.BadRequestError, match='variant'):
    content(video.id, variant='audio')


def test_edits_extensions_remixes_keep_the_source(
  service, client, video, tmp_path
):
  videos = client.videos
  mp4 = videos.download_content(video.id).read()
  edited = videos.edit(
    prompt='a red 3 stands still', video=('x.mp4', mp4), extra_body=FAST
  )
  by_id = videos.edit(
    prompt='a red 3 stands still',
    video=openai.omit,
    extra_body={'video': {'id': video.id}, **FAST},
  )
  by_id_in_json = {'prompt': 'x', 'seconds': 1, 'video': {'id': video.id}}
  extended = client.post(
    '/videos/extensions',
    cast_to=openai.types.Video,
    body={**by_id_in_json, **FAST},
  )
  again = videos.extend(
    prompt='a red 3 moves up',
    seconds='1',
    video=openai.omit,
    extra_body={'video': {'id': video.id}, **FAST},
  )
  remixed = videos.remix(
    video.id, prompt='a blue 7 moves to the right', extra_body=FAST
  )
  assert poll(client, edited).remixed_from_video_id is None
  assert poll(client, by_id).remixed_from_video_id == video.id
  for job in (extended, again):
    assert poll(client, job).seconds == '3.125'  # the stitched total
  remixed = poll(client, remixed)
  assert remixed.remixed_from_video_id == video.id
  assert remixed.settings['seed'] == 7  # inherited
  data = videos.download_content(edited.id).read()
  about = report(service, tmp_path, data)
  assert about.actions[:2] == ('c2pa.opened', 'c2pa.edited')
  assert about.state == 'trusted' and about.ingredients[0]['manifest']


def test_pictures_and_modes(service, client, video, tmp_path):
  videos = client.videos
  url = f'data:image/png;base64,{base64.b64encode(png()).decode()}'
  first = videos.create(
    prompt='a red 3 moves up', input_reference=('a.png', png()), extra_body=FAST
  )
  last = videos.create(
    prompt='a red 3 moves up',
    extra_body={
      'input_reference': {'image_url': url},
      'image_at': 'last',
      **FAST,
    },
  )
  from_video = videos.create(
    prompt='a red 3 moves up',
    extra_body={'input_reference': {'file_id': video.id}, **FAST},
  )
  source = {'video': {'id': video.id}, 'frames': 17, **FAST}
  jobs = [first, last, from_video]
  for values in (
    {'mode': 'connect', 'video2': {'id': video.id}, **source},
    {'mode': 'still', 'format': 'png', **FAST},
    {'format': 'gif', **FAST},
    {'format': 'webm', **FAST},
  ):
    body = {'prompt': 'a red 3 moves up', **values}
    jobs.append(client.post('/videos', cast_to=openai.types.Video, body=body))
  jobs = [poll(client, job) for job in jobs]
  for job, suffix in zip(jobs[-3:-1], ('.png', '.gif'), strict=True):
    data = videos.download_content(job.id).read()
    assert report(service, tmp_path, data, suffix).state == 'trusted'
  beside = videos.download_content(jobs[-1].id, variant='manifest').read()
  (tmp_path / 'downloaded.webm.c2pa').write_bytes(beside)
  data = videos.download_content(jobs[-1].id).read()
  assert report(service, tmp_path, data, '.webm').state == 'trusted'
  # An uploaded WebM keeps its history, like a video chosen by its id.
  webm = {'id': jobs[-1].id}
  edits = [
    videos.edit(prompt='x', video=('x.webm', data), extra_body=FAST),
    videos.edit(
      prompt='x', video=openai.omit, extra_body={'video': webm, **FAST}
    ),
  ]
  (tmp_path / 'downloaded.webm.c2pa').unlink()
  for job in edits:
    mp4 = videos.download_content(poll(client, job).id).read()
    about = report(service, tmp_path, mp4)
    assert about.actions[:2] == ('c2pa.opened', 'c2pa.edited')
    assert about.state == 'trusted' and about.ingredients[0]['manifest']
  picture = manifest.verify(
    service.files.results(first.id) / 'video.mp4',
    roots=[service.signing_key.root],
  )
  assert picture.ingredients[0]['relationship'] == 'inputTo'


def test_long_video_with_a_schedule(client):
  long = client.videos.create_and_poll(
    prompt='unused',
    seconds='8',
    extra_body={'prompt_schedule': '0: a red 0 bounces; 4: a blue 7', **FAST},
    poll_interval_ms=50,
  )
  assert (long.status, long.seconds) == ('completed', '8.125'), long.error


def test_list_and_delete(client, video):
  for _ in range(2):  # whatever other tests did
    client.videos.create(prompt='a red 3', extra_body=FAST)
  page = client.videos.list(limit=2)
  assert len(page.data) == 2 and page.has_more
  ids = [item.id for item in client.videos.list(limit=2)]
  assert video.id in ids and len(ids) == len(set(ids)) > 2
  oldest = client.videos.list(order='asc', limit=1).data[0]
  assert oldest.id == ids[-1]
  deleted = client.videos.delete(ids[0])
  assert deleted.deleted and deleted.object == 'video.deleted'
  with pytest.raises(openai.NotFoundError):
    client.videos.retrieve(ids[0])


def test_characters_are_refused(client):
  with pytest.raises(openai.BadRequestError, match='not supported'):
    client.videos.create_character(name='x', video=('a.mp4', b'x'))
  with pytest.raises(openai.BadRequestError, match='not supported'):
    client.videos.get_character('x')


def test_refusals_of_the_model(client):
  for values, param in (
    ({'size': '65x64'}, 'size'),
    ({'prompt': 'a red 3 ' * 200}, 'prompt'),
    ({'extra_body': {'solver': 'magic'}}, 'solver'),
    ({'extra_body': {'mode': 'loop'}}, 'mode'),
    ({'extra_body': {'image_at': 'last'}}, 'image_at'),
    ({'extra_body': {'fps': 1e-9}}, 'fps'),
    ({'extra_body': {'fps': 60, 'format': 'gif'}}, 'fps'),
    ({'extra_body': {'format': 'png'}}, 'format'),
    ({'seconds': '60', 'extra_body': {'format': 'webm'}}, 'format'),
  ):
    with pytest.raises(openai.BadRequestError) as error:
      client.videos.create(**{'prompt': 'x', **values})
    assert error.value.param == param, error.value


def test_warnings_of_the_model(client):
  for _ in range(2):
    warned = client.videos.create(prompt='a dog in a park')
    assert any('has dog, park' in text for text in warned.warnings)
    client.videos.delete(warned.id)
  plain = client.videos.create(prompt='a red 3 moves to the right')
  assert plain.warnings == []
  client.videos.delete(plain.id)
  assert 'a small red 3' in client.models.list().data[0].example


def test_same_seed_same_mark(service, client, video):
  again = client.videos.create_and_poll(
    prompt='a red 3 moves to the right',
    seconds='2',
    size='64x64',
    extra_body={'steps': '2', 'seed': '7'},
    poll_interval_ms=50,
  )
  results = [service.jobs.get(v.id).result for v in (video, again)]
  marks = [result['provenance']['watermark'] for result in results]
  assert marks[0] == marks[1]
  assert service.jobs.marked(int(marks[0], 16)).id == again.id


def test_provenance_checks(client, video):
  mp4 = client.videos.download_content(video.id).read()
  check = client.content_provenance_checks.create(file=('v.mp4', mp4))
  assert check.object == 'content_provenance_check'
  c2pa, mark = check.results
  assert (c2pa.outcome, c2pa.validation_state) == ('detected', 'trusted')
  assert c2pa.model == 'digits' and c2pa.generated_at
  assert mark.type == 'org.spacetime.chroma.2'
  check = client.content_provenance_checks.create(file=('v.png', png()))
  assert check.results[0].validation_state == 'not_present'
  assert [r.outcome for r in check.results] == ['not_detected'] * 2
  with pytest.raises(openai.BadRequestError):
    client.content_provenance_checks.create(file=('v.txt', b'text'))


def test_moderations(client, service):
  answer = client.moderations.create(input=['a red 3', 'a naked woman'])
  assert [result.flagged for result in answer.results] == [False, True]
  assert answer.results[1].categories.sexual
  assert answer.results[1].category_scores.sexual == 1
  with pytest.raises(openai.BadRequestError) as error:
    client.videos.create(prompt='a naked woman')
  assert error.value.code == 'moderation_blocked'
  assert 'sexual' in error.value.message
  with service.jobs.database.reading() as execute:
    rows = execute("select * from audit where verdict = 'refused'")
  assert rows[-1]['stage'] == 'prompt' and rows[-1]['rule'].startswith('sexual')
  assert 'naked' not in str(rows)


def test_classifier_that_cannot_run_fails_the_job(client, monkeypatch):
  def fail():
    raise CheckError('no classifier here')

  monkeypatch.setitem(frames_lib.CHECKERS, 'opennsfw', fail)
  job = client.videos.create_and_poll(
    prompt='a red 3', extra_body=FAST, poll_interval_ms=50
  )
  assert (job.status, job.error.code) == ('failed', 'safety_check_failed')
  bad = ('test 1', lambda frame: 0.99)
  monkeypatch.setitem(frames_lib.CHECKERS, 'opennsfw', lambda: bad)
  job = client.videos.create_and_poll(
    prompt='a red 3', extra_body=FAST, poll_interval_ms=50
  )
  assert job.error.code == 'moderation_blocked'
  with pytest.raises(openai.BadRequestError):
    client.videos.download_content(job.id)


def test_cancel_and_delete_a_running_video(service, client):
  def started(job):
    while service.jobs.get(job.id).steps_done < 1:
      time.sleep(0.005)

  body = {'steps': 150}
  job = client.videos.create(prompt='a red 3', extra_body=body)
  started(job)
  client.post(f'/videos/{job.id}/cancel', cast_to=object)
  done = client.videos.poll(job.id, poll_interval_ms=20)
  assert done.error.code == 'cancelled' and done.steps_done < 150
  job = client.videos.create(prompt='a red 3', extra_body=body)
  started(job)
  client.videos.delete(job.id)
  # The next job starts at once, and nothing of the deleted one stays.
  after = client.videos.create_and_poll(
    prompt='a red 3', extra_body=FAST, poll_interval_ms=50
  )
  assert after.status == 'completed'
  for folder in (service.files.work, service.files.results):
    assert not folder(job.id).exists()


def test_events(service, client):
  import urllib.request

  job = client.videos.create(prompt='a red 3', extra_body=FAST)
  url = f'{service.url}/v1/videos/{job.id}/events'
  with urllib.request.urlopen(url, timeout=60) as answer:
    assert answer.headers['content-type'].startswith('text/event-stream')
    text = answer.read().decode()
  assert text.count('event: video') >= 2 and '"status": "completed"' in text


def test_webhooks(service, client):
  Receiver.received = []
  server = http.server.HTTPServer(('127.0.0.1', 0), Receiver)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f'http://127.0.0.1:{server.server_port}/hook'
  hooks = client.webhooks
  try:
    with pytest.raises(openai.BadRequestError, match='not allowed this host'):
      hooks.create(
        name='x', url='https://10.0.0.1/', event_types=['video.completed']
      )
    hook = hooks.create(
      name='mine', url=url, event_types=['video.completed', 'video.failed']
    )
    assert hook.signing_secret.startswith('whsec_')
    assert hooks.retrieve(hook.id).url == url
    assert hooks.update(hook.id, name='other').name == 'other'
    assert [item.id for item in hooks.list().data] == [hook.id]
    assert set(hooks.event_types.list().data) == set(webhooks.EVENTS)
    result = hooks.test(hook.id, event_type='video.completed')
    assert result.status_code == 200
    rotated = hooks.rotate_secret(hook.id)
    assert rotated.signing_secret != hook.signing_secret
    Receiver.received.clear()
    job = client.videos.create_and_poll(
      prompt='a red 3', extra_body=FAST, poll_interval_ms=50
    )
    deadline = time.time() + 20
    while not Receiver.received and time.time() < deadline:
      time.sleep(0.05)
    headers, body = Receiver.received[0]
    event = hooks.unwrap(body, headers, secret=rotated.signing_secret)
    assert (event.type, event.data.id) == ('video.completed', job.id)
    with pytest.raises(openai.InvalidWebhookSignatureError):
      hooks.verify_signature(
        body + b' ', headers, secret=rotated.signing_secret
      )
    assert hooks.delete(hook.id).deleted
    with pytest.raises(openai.NotFoundError):
      hooks.retrieve(hook.id)
  finally:
    server.shutdown()
    server.server_close()


def test_second_video_compiles_nothing(client, video, monkeypatch):
  stages = []
  stage = progress.Progress.stage

  def record(self, label):
    stages.append(label)
    return stage(self, label)

  monkeypatch.setattr(progress.Progress, 'stage', record)
  same = {'size': '64x64', 'seconds': '2', 'seed': 8}
  other = {'size': '32x32', 'mode': 'still'}
  for values, compiles in ((same, False), (other, True)):
    body = {'prompt': 'a red 3 moves to the left', **values, **FAST}
    job = client.post('/videos', cast_to=openai.types.Video, body=body)
    poll(client, job)
    assert ('compiling' in stages) == compiles, stages


def test_interrupted_long_video_goes_on(service, client, monkeypatch):
  """A worker that dies after a chunk: the next attempt does not repeat it."""
  from spacetime.pipeline import long_video

  chunks = []
  original = long_video.Chunks.generate

  def generate(self, chunk):
    chunks.append(chunk.index)
    if chunk.index == 1 and chunks.count(1) == 1:
      raise SystemExit  # as if killed: neither failed nor completed
    return original(self, chunk)

  monkeypatch.setattr(long_video.Chunks, 'generate', generate)
  worker = service.supervisor.worker
  try:
    settings = {'seconds': 8.0, **FAST}
    job = service.create('solo', {'prompt': 'a red 0 bounces', **settings})
    stored = None
    while stored is None or stored.status == 'queued':
      stored = service.jobs.get(job.id)
      time.sleep(0.01)
    while stored.status == 'in_progress' and chunks.count(1) < 1:
      time.sleep(0.01)
      stored = service.jobs.get(job.id)
    # The thread of the worker has died with SystemExit.
    service.supervisor.thread.join(60)
    assert service.jobs.get(job.id).status == 'in_progress'
    assert worker.jobs.release(worker.name) == 1
    assert worker.run_next()
    done = service.jobs.get(job.id)
    assert (done.status, done.attempt) == ('completed', 2), done.error
    assert chunks.count(0) == 1
    assert done.result['frames'] == 65
  finally:
    monkeypatch.undo()
    service.supervisor.start()
