"""Malformed commands are refused in one line, soon, and change nothing."""

import contextlib
import signal
import time

import pytest

from spacetime.data import chat_endpoint
from tests.corpus import commands as corpus
from tests.helpers import commands

# Of a refusal, at most: of computing, and on a clock.
SECONDS, CLOCK = 30, 300


@contextlib.contextmanager
def alarm():
  """Raises RuntimeError where a command hangs or computes."""

  def stop(number, frame):
    raise RuntimeError('a hang')

  before = {n: signal.signal(n, stop) for n in (signal.SIGALRM, signal.SIGPROF)}
  signal.setitimer(signal.ITIMER_PROF, SECONDS)
  signal.alarm(CLOCK)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    for number, action in before.items():
      signal.signal(number, action)


def fault(case, arguments, root, before) -> str | None:
  """What is wrong with a command's refusal; None if nothing is."""
  try:
    with alarm():
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
    print(f'{time.monotonic() - began:.1f} s', *case[:9], reason, flush=True)
    slowest = max(slowest, (time.monotonic() - began, case))
    if reason:
      faults.append(f'{" ".join(case)[:200]!r}: {reason}')
      before = corpus.snapshot(root)
  print(f'{len(cases)} commands, {len(faults)} faults, slowest {slowest}')
  assert not faults, '\n'.join(faults)
