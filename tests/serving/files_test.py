"""Files of jobs on a disk and in a bucket that two machines share."""

import os

import pytest

from spacetime import SettingError
from spacetime.media import files as media_files
from spacetime.serving.files import Files
from spacetime.serving.settings import ServeSettings
from spacetime.serving.uploads import Upload
from tests.helpers import bucket
from tests.helpers import service as service_lib
from tests.serving import app_test

URL = 'gs://bucket/spacetime'


@pytest.fixture
def store(monkeypatch):
  """Objects of the bucket: name -> contents."""
  bucket.in_memory(monkeypatch)
  return bucket.MemoryBucket.store


@pytest.fixture
def servers(store, tmp_path):
  """Clients of two servers with folders of their own and one queue."""
  first, second = (
    app_test.client(tmp_path / name, files=URL, sign='off') for name in 'ab'
  )
  second.service.jobs = first.service.jobs
  return first, second


def test_either_server_answers(servers, store):
  first, second = servers
  response = first.post(
    '/v1/videos',
    data={'prompt': 'x'},
    files={'input_reference': ('a.png', app_test.png())},
  )
  job_id = response.json()['id']
  # The other machine's worker runs it: it has none of its files.
  job = second.service.jobs.claim('w', lease_seconds=60, max_running=1)
  assert not second.service.files.inputs(job_id).exists()
  (upload,) = job.params['inputs'].values()
  folder = second.service.files.fetch_inputs(job_id)
  assert Upload(**upload).read(folder).shape == (1, 64, 64, 3)
  service_lib.complete(second.service, job)
  contents = {
    server.get(f'/v1/videos/{job_id}/content').content for server in servers
  }
  assert len(contents) == 1 and contents.pop()[4:8] == b'ftyp'
  headers = {'range': 'bytes=4-7'}
  part = first.get(f'/v1/videos/{job_id}/content', headers=headers)
  assert part.content == b'ftyp'
  # The server that did not make it remixes it, and deletes it everywhere.
  remix = first.post(f'/v1/videos/{job_id}/remix', json={'prompt': 'y'})
  assert remix.status_code == 200, remix.text
  assert any('video.mp4' in name and 'inputs' in name for name in store)
  for video in (job_id, remix.json()['id']):
    assert first.delete(f'/v1/videos/{video}').status_code == 200
  assert not store


def test_result_is_complete_with_its_last_file(store, tmp_path):
  files = Files(tmp_path / 'a', bucket=URL)
  other = Files(tmp_path / 'b', bucket=URL)
  files.work('j').mkdir()
  (files.work('j') / 'video.mp4').write_bytes(b'v')
  names = []
  upload = files._upload

  def interrupted(*arguments):
    upload(*arguments)
    names.extend(store)
    raise OSError('the machine dies')

  files._upload = interrupted
  with pytest.raises(OSError):
    files.finish('j', {'bytes': 1})
  assert names[-1].endswith('result.json')
  # It was uploaded: another worker finds the job finished.
  assert other.finished('j') == {'bytes': 1}
  assert other.result('j', 'video.mp4').read_bytes() == b'v'
  store.pop(names[-1])
  assert Files(tmp_path / 'c', bucket=URL).finished('j') is None


def test_old_copies_and_orphans_are_removed(store, tmp_path, monkeypatch):
  monkeypatch.setattr(media_files, 'changed', lambda path: 100)
  files = Files(tmp_path, bucket=URL)
  for job_id in ('gone', 'known'):
    files.inputs(job_id).mkdir()
    (files.inputs(job_id) / 'x').write_bytes(b'x')
    files.store_inputs(job_id)
    os.utime(files.inputs(job_id), (1, 1))
  assert files.remove_orphans({'known'}, before=10.0) == 2
  assert len(store) == 2  # not older than that
  assert (files.fetch_inputs('known') / 'x').read_bytes() == b'x'
  os.utime(files.inputs('known'), (1, 1))
  assert files.remove_orphans({'known'}, before=101.0) == 2
  assert [name for name in store if 'known' in name] == list(store) != []


def test_other_schemes_are_refused():
  with pytest.raises(SettingError, match='files=.*expected gs://BUCKET/NAME'):
    ServeSettings(files='ftp://host/x')
  settings = ServeSettings(files=URL, state='here')
  assert settings.bucket == URL and settings.files_folder == settings.folder
