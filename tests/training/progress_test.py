"""Answers to signals, and the bar while a program compiles."""

import subprocess
import sys

from spacetime.training import progress

BLOCKED = """
import ctypes, os, signal, sys, threading
from spacetime.training import progress
signal.signal(signal.SIGTERM, lambda number, frame: None)
with progress.answered_signals():
  for delay in range(int(sys.argv[1])):
    kill = lambda: os.kill(os.getpid(), signal.SIGTERM)
    threading.Timer(0.2 * (delay + 1), kill).start()
  for _ in range(3):  # each signal ends one
    ctypes.CDLL(None).sleep(1)  # no Python handler runs meanwhile
"""


def signalled(times):
  return subprocess.run(
    [sys.executable, '-c', BLOCKED, str(times)], capture_output=True, text=True
  )


def test_a_signal_is_answered_while_no_python_runs():
  process = signalled(1)
  assert 'SIGTERM: the run stops after compiling' in process.stderr
  assert process.returncode == 0


def test_a_second_signal_aborts():
  process = signalled(2)
  assert 'SIGTERM again: aborted' in process.stderr
  assert process.returncode == 128 + 15


def test_the_bar_says_what_compiles(capsys):
  with progress.bar(start=0, steps=2) as bar:
    with progress.compiling('the step', bar):
      pass
  assert 'compiling the step, 0 s' in capsys.readouterr().err
