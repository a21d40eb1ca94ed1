"""Routes without a worker: fields, errors, owners, limits."""

import base64
import contextlib
import io
import json
import os
import socket
import time
import urllib.request

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from spacetime.media import video_writer
from spacetime.provenance import keys as signing_keys
from spacetime.provenance import manifest
from spacetime.serving import app as app_lib
from spacetime.serving import fields, keys, uploads
from tests.helpers import service as service_lib

BASE = 'http://127.0.0.1'


def png(size=(64, 64)):
  buffer = io.BytesIO()
  Image.new('RGB', size, (200, 0, 0)).save(buffer, 'PNG')
  return buffer.getvalue()


def client(folder, **settings):
  service = service_lib.make(folder, **settings)
  test_client = TestClient(
    app_lib.create(service), base_url=BASE, raise_server_exceptions=False
  )
  test_client.service = service
  return test_client


@pytest.fixture
def http(tmp_path):
  return client(tmp_path, max_upload_mb=1)


def create(http, status=200, **values):
  response = http.post('/v1/videos', json={'prompt': 'a red 3', **values})
  assert response.status_code == status, response.text
  return response.json()


def leftovers(http):
  """Files of jobs that do not exist."""
  root, ids = http.service.files.root, http.service.jobs.ids()
  return [
    path
    for name in ('inputs', 'work', 'results')
    for path in (root / name).iterdir()
    if path.name not in ids
  ]


def test_create_and_retrieve(http):
  video = create(http, seconds=2, size='64x64', seed='7', steps=2)
  assert video['object'] == 'video' and video['status'] == 'queued'
  assert (video['seconds'], video['size']) == ('2.125', '64x64')
  settings = {'seconds': 2.0, 'size': '64x64', 'seed': 7, 'steps': 2}
  assert video['settings'] == settings
  response = http.get(f'/v1/videos/{video["id"]}')
  assert response.json() == video
  assert response.headers['openai-poll-after-ms'].isdigit()
  assert response.headers['x-request-id'].startswith('req_')
  assert response.headers['x-content-type-options'] == 'nosniff'
  assert "default-src 'self'" in response.headers['content-security-policy']


REFUSED = [
  ({'prompt': ''}, 'prompt', 'missing'),
  ({'prompt': 3}, 'prompt', 'invalid_type'),
  ({'prompt': 'x' * 9000}, 'prompt', 'invalid_value'),
  ({'model': 'other'}, 'model', 'model_not_found'),
  ({'model': ['digits']}, 'model', 'invalid_type'),
  ({'model': []}, 'model', 'invalid_type'),
  ({'seconds': 'soon'}, 'seconds', 'invalid_type'),
  ({'seconds': -1}, 'seconds', 'invalid_value'),
  ({'seconds': 'nan'}, 'seconds', 'invalid_type'),
  ({'seconds': '1e999'}, 'seconds', 'invalid_type'),
  ({'size': 'big'}, 'size', 'invalid_value'),
  ({'size': 64}, 'size', 'invalid_type'),
  ({'size': '6\u0664x64'}, 'size', 'invalid_value'),
  ({'size': '0x64'}, 'size', 'invalid_value'),
  ({'seconds': '1_0'}, 'seconds', 'invalid_type'),
  ({'seconds': '\u0663'}, 'seconds', 'invalid_type'),
  ({'seed': 1.5}, 'seed', 'invalid_type'),
  ({'seed': 2**40}, 'seed', 'invalid_value'),
  ({'seed': True}, 'seed', 'invalid_type'),
  ({'steps': 10**6}, 'steps', 'invalid_value'),
  ({'steps': 201}, 'steps', 'invalid_value'),
  ({'mode': 'dance'}, 'mode', 'invalid_value'),
  ({'format': 'avi'}, 'format', 'invalid_value'),
  ({'expand_prompt': 'http://10.0.0.1/v1'}, 'expand_prompt', 'invalid_value'),
  ({'out': '/etc/passwd'}, 'out', 'unknown'),
  ({'checkpoint': 'other'}, 'checkpoint', 'unknown'),
  ({'prompt_schedule': '0: a; 1: b'}, 'prompt_schedule', 'invalid_value'),
  (
    {'prompt_schedule': [[0]], 'seconds': 2},
    'prompt_schedule',
    'invalid_value',
  ),
  ({'input_reference': 'http://10.0.0.1/x.png'}, 'input_reference', None),
  ({'input_reference': 'file:///etc/passwd'}, 'input_reference', None),
  (
    {'input_reference': {'image_url': 'data:;base64,!'}},
    'input_reference',
    None,
  ),
  ({'input_reference': {'a': 1, 'b': 2}}, 'input_reference', 'invalid_type'),
  ({'input_reference': {'id': 'video_0'}}, 'input_reference', 'not_found'),
  (
    {'prompt_schedule': [[i, 'a'] for i in range(1001)], 'seconds': 2000},
    'prompt_schedule',
    'invalid_value',
  ),
  (
    {'prompt_schedule': [[0, 'a; 4: b']], 'seconds': 8},
    'prompt_schedule',
    'invalid_value',
  ),
  ({'prompt_schedule': [], 'seconds': 8}, 'prompt_schedule', 'invalid_value'),
  ({'input_reference': 7}, 'input_reference', 'invalid_type'),
  ({'video': {'id': 7}}, 'video', 'invalid_type'),
]


@pytest.mark.slow
@pytest.mark.parametrize('values, param, code', REFUSED)
def test_refused_fields(http, values, param, code):
  status = 404 if code == 'not_found' else 400
  error = create(http, status, **values)['error']
  assert error['type'] == 'invalid_request_error'
  assert error['param'] == param and error['message']
  assert code is None or error['code'] == code
  assert not http.service.jobs.ids() and not leftovers(http)


@pytest.mark.parametrize(
  'values, message',
  [
    ({'seed': -1}, 'seed: expected 0 to 4294967295.'),
    ({'steps': 0}, 'steps: expected 1 to 200.'),
    ({'steps': 201}, 'steps: expected 1 to 200.'),
    ({'seconds': 86401}, 'seconds: expected more than 0, at most 86400.'),
    ({'prompt_schedule': '0: a'}, 'expected `seconds` too'),
  ],
)
def test_messages_state_the_range(http, values, message):
  assert message in create(http, 400, **values)['error']['message']


def test_times_of_a_schedule_are_exact(http):
  pairs = [[0, 'a'], [12345.675, 'b; c']]
  video = create(http, prompt_schedule=pairs, seconds=20_000)
  assert video['settings']['prompt_schedule'] == ('0.0000: a; 12345.6750: b; c')


@pytest.mark.parametrize(
  'data, kind',
  [
    (b'{', 'application/json'),
    (b'[]', 'application/json'),
    (b'[' * 100_000, 'application/json'),
    (b'\xff\xfe', 'application/json'),
    (b'{"prompt": "\\ud800"}', 'application/json'),
    (b'{"\\ud800": 1}', 'application/json'),
    (b'prompt=x', 'text/plain'),
    (b'', ''),
    (b'{"prompt": "a", "prompt": "b"}', 'application/json'),
    (b'{"prompt": "a", "video": {"id": "", "id": ""}}', 'application/json'),
    (b'--x\r\nbroken', 'multipart/form-data; boundary=x'),
    (b'x', 'multipart/form-data'),
    (b'prompt=a&prompt=b', 'application/x-www-form-urlencoded'),
  ],
)
def test_broken_bodies(http, data, kind):
  response = http.post(
    '/v1/videos', content=data, headers={'content-type': kind}
  )
  assert response.status_code in (400, 415), response.text
  assert response.json()['error']['message']


@pytest.mark.parametrize(
  'data, kind, reason',
  [
    (b'x', 'multipart/form-data', 'boundary'),
    (
      b'&'.join(b'a%d=1' % i for i in range(90)),
      'application/x-www-form-urlencoded',
      'Maximum number of fields is 80',
    ),
  ],
)
def test_broken_forms_say_why(http, data, kind, reason):
  response = http.post(
    '/v1/videos', content=data, headers={'content-type': kind}
  )
  error = response.json()['error']
  assert (response.status_code, error['code']) == (400, 'invalid_form')
  assert reason in error['message']


def test_model_refuses(tmp_path):
  answer = {
    'error': 'width=65: expected a multiple of 8, or `image` too',
    'param': 'width',
  }
  http = client(tmp_path, supervisor=service_lib.FakeSupervisor(answer))
  error = create(http, 400, size='65x64')['error']
  assert error['param'] == 'size' and '65' in error['message']
  assert '`input_reference`' in error['message']  # the name in the API


def test_too_many_pixels(tmp_path):
  http = client(tmp_path, max_pixels=1000)
  assert create(http, 400)['error']['param'] == 'size'


def test_queue_without_a_worker(tmp_path):
  http = client(tmp_path, supervisor=service_lib.FakeSupervisor(None))
  video = create(http)
  assert (video['status'], video['size']) == ('queued', '64x64')


@pytest.mark.parametrize(
  'method, path, status',
  [
    ('PUT', '/v1/videos', 405),
    ('GET', '/nowhere', 404),
    ('GET', '/v1/videos/video_0', 404),
    ('GET', '/v1/videos/..%2F..%2Fetc', 404),
    ('GET', '/v1/videos/%ED%A0%80', 404),
    ('GET', '/v1/videos/a%00b', 404),
    ('DELETE', '/v1/videos/video_0', 404),
    ('POST', '/v1/videos/video_0/cancel', 404),
    ('GET', '/v1/videos/video_0/content', 404),
    ('GET', '/v1/videos/video_0/events', 404),
    ('GET', '/v1/videos?limit=0', 400),
    ('GET', '/v1/videos?limit=x', 400),
    ('GET', '/v1/videos?order=up', 400),
    ('GET', '/v1/videos?after=video_0', 400),
    ('POST', '/v1/videos/characters', 400),
    ('GET', '/v1/videos/characters/c', 400),
    ('GET', '/v1/models/other', 404),
    ('GET', '/page/..%2Fapp.py', 404),
  ],
)
def test_errors_have_one_shape(http, method, path, status):
  response = http.request(method, path)
  assert response.status_code == status, response.text
  error = response.json()['error']
  assert set(error) == {'message', 'type', 'param', 'code'}
  assert error['message'] and error['code']


def test_ranges_outside_of_a_file(http):
  job = http.service.jobs.get(create(http)['id'])
  claimed = http.service.jobs.claim('w', lease_seconds=60, max_running=1)
  service_lib.complete(http.service, claimed)
  path = f'/v1/videos/{job.id}/content'
  assert http.get(path, headers={'range': 'bytes=0-3'}).status_code == 206
  for value, status in (
    ('bytes=999999999-', 416),
    ('bytes=9-1', 400),
    ('pages=1-2', 400),
  ):
    response = http.get(path, headers={'range': value})
    assert response.status_code == status
    error = response.json()['error']
    assert set(error) == {'message', 'type', 'param', 'code'}
    assert error['message'] and error['code']
  assert (
    http.get(path, headers={'range': 'bytes=999999999-'})
    .headers['content-range']
    .startswith('bytes */')
  )


def finish(http, **values):
  """The id of a completed video."""
  job_id = create(http, **values)['id']
  claimed = http.service.jobs.claim('w', lease_seconds=60, max_running=9)
  service_lib.complete(http.service, claimed)
  return job_id


@pytest.mark.parametrize('path', ['/', '/page/app.js', '/v1/videos/{}/content'])
def test_head_answers_like_get_without_a_body(http, path):
  path = path.format(finish(http))
  head, get = http.head(path), http.get(path)
  assert head.status_code == 200 and not head.content
  assert head.headers['content-length'] == str(len(get.content))


def test_null_fields_count_as_absent(http):
  job_id = finish(http)
  for path, values in (
    ('/v1/videos/edits', {'video': {'id': job_id}, 'strength': None}),
    ('/v1/videos/edits', {'video': {'file_id': job_id}}),
    ('/v1/videos/extensions', {'video': {'id': job_id}, 'seconds': 1}),
    (f'/v1/videos/{job_id}/remix', {'size': None, 'strength': None}),
  ):
    values = {'prompt': 'x', 'mode': None, **values}
    response = http.post(path, json=values)
    assert response.status_code == 200, (path, response.text)
    video = response.json()
    assert video['settings']['mode'] in ('edit', 'extend')
    assert video['settings']['size'] == '64x64'
    assert video['remixed_from_video_id'] == job_id


def test_video_that_is_deleted_meanwhile(http, monkeypatch):
  job_id = finish(http)
  results = http.service.files.results(job_id)
  (results / 'video.mp4').unlink()
  for slot in ('input_reference', 'video'):
    error = create(http, 404, **{slot: {'id': job_id}})['error']
    assert (error['code'], error['param']) == ('not_found', slot)
  path = f'/v1/videos/{job_id}/content'
  assert http.get(path).status_code == 404
  (results / 'result.json').unlink()
  error = http.get(path).json()['error']
  assert error['code'] == 'not_found'
  assert not leftovers(http)


def test_data_urls_of_any_case(http):
  text = base64.b64encode(png()).decode()
  create(http, input_reference=f'DATA:image/PNG;BASE64,{text}')
  error = create(http, 400, input_reference=f'data:image/png,{text}')['error']
  assert error['param'] == 'input_reference'


def test_session_without_keys_keeps_nothing(http):
  response = http.post('/v1/session', json={'key': '\u20ac; x'})
  assert response.status_code == 200, response.text
  assert 'set-cookie' not in response.headers


def test_unknown_fields_of_other_calls(tmp_path):
  http = client(tmp_path, webhook_hosts='hooks.test')
  hook = {
    'name': 'a',
    'url': 'https://hooks.test/',
    'event_types': ['video.failed'],
  }
  created = http.post('/v1/webhook_endpoints', json=hook).json()
  endpoint = f'/v1/webhook_endpoints/{created["id"]}'
  for path, values in (
    ('/v1/moderations', {'input': 'a'}),
    ('/v1/content_provenance_checks', {}),
    ('/v1/session', {'key': 'a'}),
    ('/v1/webhook_endpoints', hook),
    (endpoint, {}),
    (f'{endpoint}/test', {'event_type': 'video.failed'}),
    (f'{endpoint}/rotate_secret', {}),
  ):
    response = http.post(path, json={**values, 'other': 1})
    assert response.status_code == 400, (path, response.text)
    error = response.json()['error']
    assert (error['param'], error['code']) == ('other', 'unknown'), path


@pytest.mark.parametrize(
  'values, param',
  [
    ({'url': 'https://hooks.test:99999/'}, 'url'),
    ({'url': 'https://hooks.test:x/'}, 'url'),
    ({'url': 'https://hooks.test/a b'}, 'url'),
    ({'url': 'https://hooks.test/\xe9'}, 'url'),
    ({'url': 'https://[::1'}, 'url'),
    ({'url': 'https://a:b@hooks.test/'}, 'url'),
    ({'url': 'https://10.0.0.1/'}, 'url'),
    ({'url': ''}, 'url'),
    ({'name': ''}, 'name'),
    ({'event_types': []}, 'event_types'),
    ({'event_types': ['video.failed', {}]}, 'event_types'),
  ],
)
def test_refused_webhooks(tmp_path, values, param):
  http = client(tmp_path, webhook_hosts='hooks.test')
  hook = {
    'name': 'a',
    'url': 'https://hooks.test/',
    'event_types': ['video.failed', 'video.failed'],
  }
  created = http.post('/v1/webhook_endpoints', json=hook).json()
  assert created['event_types'] == ['video.failed']
  for path, body in (
    ('/v1/webhook_endpoints', hook | values),
    (f'/v1/webhook_endpoints/{created["id"]}', values),
  ):
    response = http.post(path, json=body)
    assert response.status_code == 400, response.text
    assert response.json()['error']['param'] == param
  page = http.get('/v1/webhook_endpoints').json()['data']
  assert [row['id'] for row in page] == [created['id']]
  error = http.get('/v1/webhook_endpoints?after=wh_0').json()['error']
  assert error['param'] == 'after'


def test_pictures_to_moderate(http):
  text = base64.b64encode(b'hello').decode()
  part = {
    'type': 'image_url',
    'image_url': {'url': f'data:image/png;base64,{text}'},
  }
  response = http.post('/v1/moderations', json={'input': [part]})
  error = response.json()['error']
  assert (response.status_code, error['param']) == (400, 'input')


def test_large_bodies(http):
  data = b'x' * (2**20 + 1)
  chunks = (data[:1000] for _ in range(2000))  # without Content-Length
  for content in (data, chunks):
    response = http.post(
      '/v1/videos',
      content=content,
      headers={'content-type': 'application/json'},
    )
    assert response.status_code == 413
    assert response.json()['error']['code'] == 'request_too_large'


@pytest.mark.parametrize('is_chunked', [False, True])
def test_large_body_is_answered_while_it_is_sent(tmp_path, is_chunked):
  """A connection that closes early would look like a lost one."""
  service = service_lib.make(tmp_path, max_upload_mb=1)
  part = b'x' * 2**16
  kind = b'content-length: %d' % (1024 * len(part))
  if is_chunked:
    kind = b'transfer-encoding: chunked'
    part = b'%x\r\n%s\r\n' % (len(part), part)
  with service_lib.running(service) as url:
    address = '127.0.0.1', int(url.rpartition(':')[2])
    with socket.create_connection(address, timeout=20) as connection:
      connection.sendall(
        b'POST /v1/videos HTTP/1.1\r\nhost: 127.0.0.1\r\n'
        b'connection: close\r\ncontent-type: application/json\r\n'
        + kind
        + b'\r\n\r\n'
      )
      for _ in range(1024):
        connection.sendall(part)
      if is_chunked:
        connection.sendall(b'0\r\n\r\n')
      assert connection.recv(100).startswith(b'HTTP/1.1 413')


def test_other_sites_are_refused(http):
  for headers in ({'origin': 'http://evil.example'}, {'host': 'evil.example'}):
    response = http.post('/v1/videos', json={'prompt': 'x'}, headers=headers)
    assert response.status_code == 403, headers
  response = http.post(
    '/v1/videos', json={'prompt': 'x'}, headers={'origin': BASE}
  )
  assert response.status_code == 200
  assert http.get('/health', headers={'host': '['}).status_code == 400


def test_idempotency(http):
  def post(key, prompt='x'):
    return http.post(
      '/v1/videos', json={'prompt': prompt}, headers={'idempotency-key': key}
    )

  assert post('k').json()['id'] == post('k').json()['id']
  assert post('k').json()['id'] != post('l').json()['id']
  assert post('').json()['id'] != post('').json()['id']  # no key at all
  error = post('k', 'y').json()['error']
  assert error['code'] == 'idempotency_key_reused'


def test_queue_limit(tmp_path):
  http = client(tmp_path, max_queued=1)
  create(http)
  response = http.post('/v1/videos', json={'prompt': 'x'})
  assert response.status_code == 429
  assert response.headers['x-should-retry'] == 'false'
  assert response.json()['error']['type'] == 'rate_limit_error'


def test_full_disk(tmp_path):
  http = client(tmp_path, min_free_mb=2**40)
  assert create(http, 503)['error']['code'] == 'disk_full'
  health = http.get('/health')
  assert (health.status_code, health.json()['status']) == (503, 'disk_full')


def test_change_and_cancel_a_queued_video(http):
  video = create(http, seed=3)
  path = f'/v1/videos/{video["id"]}'
  changed = http.patch(path, json={'prompt': 'a blue 7', 'steps': 4}).json()
  assert changed['prompt'] == 'a blue 7'
  assert changed['settings'] == {'seed': 3, 'steps': 4}
  assert http.patch(path, json={'seed': 'x'}).status_code == 400
  assert http.patch(path, json={'video': {'id': 'x'}}).status_code == 400
  cancelled = http.post(f'{path}/cancel').json()
  assert cancelled['status'] == 'failed'
  assert cancelled['error']['code'] == 'cancelled'
  error = http.patch(path, json={'prompt': 'x'}).json()['error']
  assert error['code'] == 'not_queued'
  assert http.get(f'{path}/content').json()['error']['code'] == (
    'video_not_ready'
  )
  events = http.get(f'{path}/events').text
  assert (
    events.startswith('event: video\ndata: {') and events.count('data') == 1
  )


def test_keys_and_owners(tmp_path):
  path = tmp_path / 'keys.json'
  ann = keys.add(path, 'ann', days=None)
  bob = keys.add(path, 'bob', days=1)
  http = client(tmp_path / 'state', api_keys=str(path), host='0.0.0.0')
  assert os.stat(path).st_mode & 0o077 == 0
  assert ann not in path.read_text()

  def call(method, url, key, **options):
    headers = {'authorization': f'Bearer {key}'}
    return http.request(method, url, headers=headers, **options)

  assert http.get('/v1/videos').status_code == 401
  assert call('GET', '/v1/videos', 'st-wrong').status_code == 401
  video = call('POST', '/v1/videos', ann, json={'prompt': 'x'}).json()
  path_of = f'/v1/videos/{video["id"]}'
  for method, url, options in (
    ('GET', path_of, {}),
    ('DELETE', path_of, {}),
    ('PATCH', path_of, {'json': {'prompt': 'y'}}),
    ('GET', f'{path_of}/content', {}),
    ('GET', f'{path_of}/events', {}),
    ('POST', f'{path_of}/cancel', {}),
    ('POST', f'{path_of}/remix', {'json': {'prompt': 'y'}}),
    (
      'POST',
      '/v1/videos/edits',
      {'json': {'prompt': 'y', 'video': {'id': video['id']}}},
    ),
  ):
    assert call(method, url, bob, **options).status_code == 404, (method, url)
  assert call('GET', '/v1/videos', bob).json()['data'] == []
  assert call('GET', path_of, ann).status_code == 200
  assert http.post('/v1/session', json={'key': 'st-x'}).status_code == 401
  assert http.post('/v1/session', json={'key': ann}).status_code == 200
  assert http.get(path_of).status_code == 200  # by the cookie
  entries = json.loads(path.read_text())
  entries[1]['expires'] = 1
  path.write_text(json.dumps(entries))
  assert call('GET', '/v1/videos', bob).status_code == 401


@pytest.mark.parametrize('end', ['expired', 'revoked'])
def test_events_end_with_the_key(tmp_path, end):
  path = tmp_path / 'keys.json'
  key = keys.add(path, 'ann', days=1)
  service = service_lib.make(tmp_path / 'state', api_keys=str(path))
  headers = {'authorization': f'Bearer {key}'}
  with (
    service_lib.running(service) as url,
    contextlib.ExitStack() as stack,
  ):
    job = service.create('ann', {'prompt': 'a red 3'})
    streams = []
    for name in ('events', f'videos/{job.id}/events'):
      request = urllib.request.Request(f'{url}/v1/{name}', headers=headers)
      answer = urllib.request.urlopen(request, timeout=20)
      streams.append(stack.enter_context(answer))
    for stream in streams:
      assert stream.readline().startswith(b'event: ')
    stream = streams[0]  # of all videos, which begins with their ids
    assert json.loads(stream.readline()[6:]) == {'ids': [job.id]}
    entries = [] if end == 'revoked' else json.loads(path.read_text())
    for entry in entries:
      entry['expires'] = 1
    path.write_text(json.dumps(entries))
    deadline = time.monotonic() + 20
    for stream in streams:
      while stream.readline():
        assert time.monotonic() < deadline, 'the stream goes on'


def test_uploads(http, tmp_path):
  response = http.post(
    '/v1/videos',
    data={'prompt': 'x', 'steps': '2'},
    files={'input_reference': ('../../evil.png', png())},
  )
  assert response.status_code == 200, response.text
  job = http.service.jobs.get(response.json()['id'])
  upload = job.params['inputs']['image']
  assert upload['original'] == 'image.png' and upload['count'] == 1
  folder = http.service.files.inputs(job.id)
  assert sorted(p.name for p in folder.iterdir()) == ['image.npy', 'image.png']
  assert job.bytes > 64 * 64 * 3
  http.delete(f'/v1/videos/{job.id}')
  assert not folder.exists()


def test_openapi_document(http):
  document = http.get('/openapi.json').json()
  body = document['paths']['/v1/videos']['post']['requestBody']['content']
  assert set(body) == {'application/json', 'multipart/form-data'}
  properties = body['application/json']['schema']['properties']
  assert set(fields.OWN) | set(fields.INPUTS) < set(properties)
  assert properties['steps']['type'] == 'integer'
  assert properties['guidance']['type'] == 'number'


def test_models_health_metrics(http):
  (model,) = http.get('/v1/models').json()['data']
  assert (model['id'], model['object'], model['longest']) == (
    'digits',
    'model',
    49,
  )
  assert http.get('/v1/models/digits').json() == model
  assert http.get('/health').json()['status'] == 'ok'
  create(http)
  text = http.get('/metrics').text
  assert 'spacetime_jobs{status="queued"} 1' in text
  assert 'spacetime_worker_ready 1' in text


def test_sweep_removes_orphans(http):
  folder = http.service.files.inputs('video_gone')
  folder.mkdir()
  os.utime(folder, (1, 1))
  kept = http.service.files.inputs('video_new')
  kept.mkdir()
  http.service.sweep()
  assert not folder.exists() and kept.exists()


@pytest.mark.slow
def test_manifest_of_an_uploaded_webm(http, tmp_path):
  frames = np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3), np.uint8)
  clips = {}
  for name in ('a.webm', 'b.webm', 'a.mp4'):
    path = video_writer.write_video(tmp_path / name, frames, fps=8)
    clips[name] = path.read_bytes()
    frames = frames[:, ::-1]
  key = signing_keys.make(tmp_path / 'key')
  signed = tmp_path / 'signed.webm'
  manifest.sign(tmp_path / 'a.webm', signed, key, generation={'seed': 1})
  beside = manifest.sidecar(signed).read_bytes()

  def post(name='a.webm', manifest=beside, field='video_manifest', **values):
    files = {'video': (name, clips[name]), field: ('x.c2pa', manifest)}
    return http.post(
      '/v1/videos/edits', data={'prompt': 'x', **values}, files=files
    )

  job = http.service.jobs.get(post().json()['id'])
  folder = http.service.files.inputs(job.id)
  original = folder / job.params['inputs']['video']['original']
  assert manifest.verify(original, roots=[key.root]).state == 'trusted'
  # Another file's, of a file that holds its own, broken, or of no upload.
  for response, param in (
    (post('b.webm'), 'video_manifest'),
    (post('a.mp4'), 'video_manifest'),
    (post(manifest=b'x'), 'video_manifest'),
    (post(field='video2_manifest'), 'video2_manifest'),
    (
      http.post('/v1/videos', json={'prompt': 'x', 'video_manifest': 7}),
      'video_manifest',
    ),
  ):
    assert response.status_code == 400, response.text
    assert response.json()['error']['param'] == param, response.text
  assert not leftovers(http)
  # Without the manifest there is none, unless the file is one of ours.
  files = {'video': ('a.webm', clips['a.webm'])}
  check = {'file': files['video']}
  for state in ('not_present', 'valid'):
    response = http.post('/v1/videos/edits', data={'prompt': 'x'}, files=files)
    job = http.service.jobs.get(response.json()['id'])
    original = http.service.files.inputs(job.id) / 'video.webm'
    assert manifest.verify(original).state == state
    answer = http.post('/v1/content_provenance_checks', files=check).json()
    assert answer['results'][0]['validation_state'] == state
    done = http.service.jobs.claim('w', lease_seconds=60, max_running=9)
    work = http.service.files.work(done.id)
    work.mkdir()
    (work / 'video.webm.c2pa').write_bytes(beside)
    entry = {'name': 'video.webm.c2pa', 'type': 'application/c2pa'}
    result = {'variants': {'manifest': entry}}
    http.service.files.finish(done.id, result)
    http.service.jobs.complete(done, result, size=1, keep=60)
    http.service.jobs.add_manifest(uploads.digest(clips['a.webm']), done.id)


@pytest.mark.slow
def test_uploaded_video_and_hostile_files(http, tmp_path):
  frames = np.random.default_rng(0).integers(0, 255, (5, 16, 24, 3), np.uint8)
  path = video_writer.write_video(tmp_path / 'clip.mp4', frames, fps=8)
  secret = tmp_path / 'secret.mp4'
  secret.write_bytes(path.read_bytes())
  clip = path.read_bytes()
  huge = png((9000, 9000))

  def post(data, name='x.mp4', field='video', **values):
    return http.post(
      '/v1/videos/edits' if field == 'video' else '/v1/videos',
      data={'prompt': 'x', **values},
      files={field: (name, data)},
    )

  response = post(clip)
  assert response.status_code == 200, response.text
  job = http.service.jobs.get(response.json()['id'])
  upload = job.params['inputs']['video']
  assert (upload['count'], upload['height'], upload['width']) == (5, 16, 24)
  assert upload['fps'] == 8 and job.params['strength'] == 0.6
  for data, field in (
    (b"ffconcat version 1.0\nfile 'secret.mp4'\n", 'video'),
    (b'#EXTM3U\n#EXTINF:1,\nsecret.mp4\n', 'video'),
    (clip[:200], 'video'),
    (b'\x80\x04\x95pickle', 'video'),
    (png(), 'video'),
    (clip, 'input_reference'),
    (png()[:60], 'input_reference'),
    (huge, 'input_reference'),
  ):
    response = post(data, field=field)
    assert response.status_code == 400, (data[:20], response.text)
    error = response.json()['error']
    assert error['param'] == field
    assert error['code'] in ('unsupported_file', 'invalid_file')
  assert not leftovers(http)
