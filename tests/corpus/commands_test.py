"""Malformed commands are refused in one line, soon, and change nothing."""

import contextlib
import signal
import time

import pytest

from spacetime.data import chat_endpoint
from tests.corpus import commands as corpus
from tests.helpers import commands

SECONDS = 20  # of a refusal, at most


@contextlib.contextmanager
def alarm(seconds: int):
  """Raises TimeoutError where a command hangs."""

  def stop(number, frame):
    raise RuntimeError('a hang')

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fault(case, arguments, root, before) -> str | None:
  """What is wrong with a command's refusal; None if nothing is."""
  try:
    with alarm(SECONDS):
      result = commands.run(case[0], *arguments)
  except BaseException as e:  # a traceback, for a user
    return f'{type(e).__name__}: {e}'[:300]
  errors = [line for line in result.err.splitlines() if 'error: ' in line]
  if 'Traceback' in result.err:
    return 'a traceback'
  if result.code not in (1, 2):
    return f'code {result.code}'
  if len(errors) != 1:
    return f'{len(errors)} lines of errors'
  after = corpus.snapshot(root)
  changed = [k for k in before if after.get(k) != before[k]]
  changed += [k for k in after if k not in before]
  return f'changed {changed[:3]}' if changed else None


@pytest.mark.e2e
def test_malformed_commands(tmp_path, monkeypatch):
  monkeypatch.setattr(chat_endpoint, 'PAUSE', 0.0)
  root = tmp_path / 'inputs'
  root.mkdir()
  monkeypatch.chdir(root)
  paths = corpus.write_inputs(root)
  cases = corpus.cases() + corpus.write_tables(root)
  assert len(cases) > 250
  before, faults, slowest = corpus.snapshot(root), [], (0.0, None)
  for case in cases:
    began = time.monotonic()
    reason = fault(case, corpus.arguments(case, paths), root, before)
    slowest = max(slowest, (time.monotonic() - began, case))
    if reason:
      faults.append(f'{" ".join(case)[:200]!r}: {reason}')
      before = corpus.snapshot(root)
  print(f'{len(cases)} commands, {len(faults)} faults, slowest {slowest}')
  assert not faults, '\n'.join(faults)
