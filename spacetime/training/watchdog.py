"""Ends a run that hangs: a worker without data, a lost peer."""

import faulthandler
import os
import sys
import threading
from collections.abc import Callable

from spacetime import SettingError
from spacetime.training.goodput import Goodput

EXIT = 75  # EX_TEMPFAIL of sysexits.h: start it again

_HINTS = {
  'data': 'a worker or the storage of data.dir hangs',
  'step': 'another process is gone, or a device hangs',
  'checkpoint': 'the output folder hangs, or another process is gone',
}


class Watchdog:
  """A thread that ends a run without progress; `with` starts and ends it.

  A hang is deep in a call that no exception reaches; only ending the process
  stops it.

  Args:
    time_log: phases of the run, whose changes are progress.
    patience: seconds without progress; 0 never ends a run.
    end: called then with the exit code.
  """

  def __init__(
    self,
    time_log: Goodput,
    *,
    patience: float,
    end: Callable[[int], None] = os._exit,
  ):
    if patience < 0:
      raise SettingError('watchdog', patience, 'seconds, or 0 for no watchdog')
    self._time_log, self._patience, self._end = time_log, patience, end
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
    seen, waited = self._time_log.since, 0.0
    pause = min(self._patience / 4, 5.0)
    while not self._done.wait(pause):
      waited += pause
      if self._time_log.since != seen:
        seen, waited = self._time_log.since, 0.0
      if waited >= self._patience:
        self._report()
        self._end(EXIT)
        return

  def _report(self) -> None:
    phase = self._time_log.phase
    hint = _HINTS.get(phase)
    print(
      f'error: no progress for {self._patience:g} s after step '
      f'{self._time_log.step}, in {phase!r}{f": {hint}" if hint else ""}; the '
      f'run ends with code {EXIT} and resumes when started again; '
      '--watchdog=SECONDS sets the patience',
      file=sys.stderr,
      flush=True,
    )
    try:
      faulthandler.dump_traceback(all_threads=True)
    except (OSError, ValueError, AttributeError):
      pass  # stderr is no file
