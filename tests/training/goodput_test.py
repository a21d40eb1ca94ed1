"""Goodput, the watchdog and the lock of a run."""

import json
import os
import subprocess
import sys
import time

import pytest

from spacetime.checkpoint import lock
from spacetime.training.goodput import FILE, Goodput
from spacetime.training.watchdog import EXIT, Watchdog


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def spend(time_log, clock, phase, seconds):
  with time_log.during(phase):
    clock.now += seconds


def test_every_second_is_of_one_phase(tmp_path):
  clock = Clock()
  time_log = Goodput(tmp_path, clock=clock)
  clock.now += 3
  with time_log.during('step'):
    spend(time_log, clock, 'data', 1)
    spend(time_log, clock, 'compile', 4)
    clock.now += 10
    time_log.count_step(1)
    spend(time_log, clock, 'checkpoint', 2)
  time_log.skipped += 1
  time_log.write(now=True)
  report = json.loads((tmp_path / FILE).read_text())
  assert report['seconds'] == {
    'init': 3,
    'compile': 4,
    'data': 1,
    'step': 10,
    'evaluate': 0,
    'checkpoint': 2,
    'lost': 0,
  }
  assert report['goodput'] == 0.5
  assert (report['taken'], report['skipped'], report['starts']) == (1, 1, 1)
  assert 'goodput 50.0 % of 20.0 s in 1 start (step 10.0' in time_log.summary()
  assert time_log.summary().endswith('1 steps, 1 skipped')


def test_steps_made_again_are_lost(tmp_path):
  clock = Clock()
  first = Goodput(tmp_path, clock=clock)
  first.enter('step')
  for step in range(1, 11):
    clock.now += 2
    first.count_step(step)
  first.write(now=True)  # then it is killed; its last checkpoint is of step 7
  second = Goodput(tmp_path, clock=clock)
  second.resume(7)
  assert second.seconds['step'] == pytest.approx(14)
  assert second.seconds['lost'] == pytest.approx(6)
  assert (second.starts, second.taken, second.step) == (2, 10, 7)
  third = Goodput(tmp_path, clock=clock)
  third.resume(10)  # all was saved
  assert third.seconds['lost'] == 0


def test_a_damaged_file_starts_from_zero(tmp_path, caplog):
  (tmp_path / FILE).write_text('{"seconds": 3}')
  with caplog.at_level('WARNING'):
    assert Goodput(tmp_path).starts == 1
  assert 'not a goodput file' in caplog.text


def test_the_watchdog_ends_a_hang_and_nothing_else(capsys):
  codes = []
  time_log = Goodput()
  with Watchdog(time_log, patience=0.2, end=codes.append):
    for _ in range(8):  # slow, but it moves
      time.sleep(0.05)
      time_log.enter('step')
    assert not codes
    time_log.enter('data')
    until = time.monotonic() + 20
    while not codes and time.monotonic() < until:
      time.sleep(0.02)
  assert codes == [EXIT]
  report = capsys.readouterr().err
  assert "no progress for 0.2 s after step 0, in 'data': a worker" in report
  assert '--watchdog=SECONDS' in report
  with Watchdog(time_log, patience=0, end=codes.append):
    pass
  with pytest.raises(ValueError, match='watchdog=-1: expected seconds'):
    Watchdog(time_log, patience=-1)


# -- the lock ------------------------------------------------------------------


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
    found = read(path)
    if alive and found and found['id'] == 'x':
      return found | {'beat': next(beats)}
    return found

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
