"""The lock of a work directory: one process writes to it."""

import json
import os
import subprocess
import sys
import time

import pytest

from spacetime.checkpoint import lock

HOLD = """
import sys, time
from spacetime.checkpoint import lock
with lock.held(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""


def test_a_directory_that_is_written_to_is_refused(tmp_path):
  with lock.held(tmp_path):
    with pytest.raises(
      ValueError, match=f'process {os.getpid()} on .*end that'
    ):
      with lock.held(tmp_path):
        pass
  assert not (tmp_path / lock.LOCK).exists()


def test_an_empty_folder_goes_with_its_lock(tmp_path):
  workdir = tmp_path / 'runs' / 'new'
  with lock.held(workdir):
    assert (workdir / lock.LOCK).exists()
  assert not list(tmp_path.iterdir())
  with lock.held(workdir):
    (workdir / 'kept').touch()
  assert (workdir / 'kept').exists()
  empty = tmp_path / 'empty'
  empty.mkdir()
  with lock.held(empty):
    pass
  assert empty.exists()  # it was there before


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path, caplog):
  holder = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)], stdout=subprocess.PIPE
  )
  try:
    assert holder.stdout.readline() == b'held\n'
    with pytest.raises(ValueError, match=f'process {holder.pid} on '):
      with lock.held(tmp_path):
        pass
  finally:
    holder.kill()
    holder.communicate()
  with caplog.at_level('WARNING'), lock.held(tmp_path):
    assert json.loads((tmp_path / lock.LOCK).read_text())['pid'] == os.getpid()
  assert 'a run that has ended' in caplog.text


def test_a_number_that_another_process_has_now_is_no_holder(tmp_path):
  other = lock._here() | {'born': '1', 'id': 'x', 'beat': 3}
  (tmp_path / lock.LOCK).write_text(json.dumps(other))
  with lock.held(tmp_path):
    pass


@pytest.mark.parametrize('alive', [True, False])
def test_another_machine_is_watched_for_signs_of_life(tmp_path, alive):
  path = tmp_path / lock.LOCK
  other = {'machine': 'far', 'host': 'far', 'pid': 1, 'id': 'x', 'beat': 0}
  path.write_text(json.dumps(other))
  beats = iter(range(1, 9))

  def read(path, read=lock._read):
    holder = read(path)
    if alive and holder and holder['id'] == 'x':
      return holder | {'beat': next(beats)}
    return holder

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(lock, '_read', read)
    if alive:
      with pytest.raises(ValueError, match='process 1 on far'):
        with lock.held(tmp_path, beat=0.05):
          pass
    else:
      with lock.held(tmp_path, beat=0.05):
        time.sleep(0.2)
        assert json.loads(path.read_text())['beat'] > 0
