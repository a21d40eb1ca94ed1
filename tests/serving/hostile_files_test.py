"""Hostile uploads through the service: answered, quickly, in little memory."""

import os
import pathlib
import resource
import time

import pytest

from spacetime.serving import decode_upload
from tests.corpus import hostile
from tests.serving import app_test

SECONDS = 30  # for one file on a busy machine; each takes less than one
MARK = pathlib.Path('/tmp/hostile_pickle_ran')


@pytest.fixture(scope='module')
def http(tmp_path_factory):
  return app_test.client(
    tmp_path_factory.mktemp('hostile'),
    max_pixels=hostile.PIXELS,
    max_queued=1000,
    sign='off',
  )


def peak() -> int:
  """Bytes of memory of the largest process that has ended."""
  return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.parametrize('case', hostile.FILES, ids=lambda case: case.name)
def test_hostile_file(http, case):
  data, before, began = case.data(), peak(), time.monotonic()
  values = {
    'prompt': 'x',
    **(
      {'mode': 'edit', 'strength': '0.5'} if case.field == hostile.VIDEO else {}
    ),
  }
  response = http.post(
    '/v1/videos', data=values, files={case.field: (case.filename, data)}
  )
  assert response.status_code in case.statuses, response.text
  answer = response.json()
  if response.status_code == 400:
    error = answer['error']
    assert error['param'] == case.field and len(error['message']) < 500
    assert error['code'] in ('unsupported_file', 'invalid_file')
    assert os.fspath(http.service.files.root) not in error['message']
  else:
    job = http.service.jobs.get(answer['id'])
    (upload,) = job.params['inputs'].values()
    pixels = upload['count'] * upload['height'] * upload['width']
    assert 0 < pixels <= hostile.PIXELS and upload['count'] <= hostile.FRAMES
    http.delete(f'/v1/videos/{job.id}')
  # The same file as evidence of where it comes from.
  checked = http.post(
    '/v1/content_provenance_checks', files={'file': (case.filename, data)}
  )
  assert checked.status_code in (200, 400), checked.text
  assert time.monotonic() - began < SECONDS
  assert peak() <= max(before, decode_upload.BASE_BYTES // 2)
  assert not app_test.leftovers(http) and not http.service.jobs.ids()
  assert not MARK.exists()


def test_table_is_large():
  assert len(hostile.FILES) >= 60
  assert len({case.name for case in hostile.FILES}) == len(hostile.FILES)
