"""Goodput and the watchdog of a run."""

import json
import time

import pytest

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


def test_repeated_steps_are_lost(tmp_path):
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
