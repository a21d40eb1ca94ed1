"""Ends a run that hangs: a worker that brings no data, a peer that is gone."""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable

from spacetime.training.goodput import Ledger

EXIT = 75  # EX_TEMPFAIL of sysexits.h: start it again

_HINTS = {
  'data': 'a worker or the storage of data.dir hangs',
  'step': 'another process is gone, or a device hangs',
  'checkpoint': 'the storage of --workdir hangs, or another process is gone',
}


class Watchdog:
  """A thread that looks whether the ledger moves; `with` starts and ends it.

  What hangs is deep in a call that no exception reaches: only the end of the
  process does.

  Args:
    ledger: of the run.
    patience: seconds without progress; 0 never ends a run.
    end: what is called then, with the exit code.
  """

  def __init__(
    self,
    ledger: Ledger,
    *,
    patience: float,
    end: Callable[[int], None] = os._exit,
  ):
    if patience < 0:
      raise ValueError(
        f'--watchdog={patience}: expected seconds, or 0 for no watchdog'
      )
    self._ledger, self._patience, self._end = ledger, patience, end
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self) -> 'Watchdog':
    if self._patience:
      self._thread.start()
    return self

  def __exit__(self, *exception) -> None:
    self._done.set()
    if self._patience:
      self._thread.join()

  def _watch(self) -> None:
    seen, waited = self._ledger.since, 0.0
    pause = min(self._patience / 4, 5.0)
    while not self._done.wait(pause):
      waited += pause
      if self._ledger.since != seen:
        seen, waited = self._ledger.since, 0.0
      if waited >= self._patience:
        self._tell()
        self._end(EXIT)
        return

  def _tell(self) -> None:
    phase = self._ledger.phase
    hint = _HINTS.get(phase)
    print(
      f'error: no progress for {self._patience:g} s after step '
      f'{self._ledger.step}, in {phase!r}{f": {hint}" if hint else ""}; the '
      f'run ends with code {EXIT} and goes on when started again; '
      '--watchdog=SECONDS sets the patience',
      file=sys.stderr,
      flush=True,
    )
    try:
      faulthandler.dump_traceback(all_threads=True)
    except (OSError, ValueError, AttributeError):
      pass  # of a stderr that is no file
