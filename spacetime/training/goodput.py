"""Where a run's time goes, summed over all of its starts."""

import contextlib
import json
import time
from collections.abc import Iterator

from absl import logging
from etils import epath

from spacetime.media import files

FILE = 'goodput.json'
# Every second is of one phase; 'step' is what it is all for. 'lost' is the time
# of steps that were made, were in no checkpoint when the run ended, and had to
# be made again.
PHASES = ('init', 'compile', 'data', 'step', 'evaluate', 'checkpoint', 'lost')
_EVERY = 10.0  # seconds between writes


class Ledger:
  """Adds up wall time by phase, and counts steps, starts and skipped steps.

  Steps run behind the host that dispatches them: where it waits for data while
  a device still computes, the wait counts as 'data', so that goodput is never
  told too high.

  Args:
    workdir: whose goodput.json is read and written; None keeps nothing.
    clock: seconds, monotonic.

  Attributes:
    phase: the present one.
    since: when it began; the watchdog looks at it.
    step: the last one made.
    seconds: by phase.
  """

  def __init__(self, workdir=None, *, clock=time.monotonic):
    self._clock = clock
    self._path = None if workdir is None else epath.Path(workdir) / FILE
    self.phase, self.since = 'init', clock()
    self._written = self.since
    self.seconds = dict.fromkeys(PHASES, 0.0)
    self.step = self.taken = self.skipped = self.starts = 0
    self._read()
    self.starts += 1

  def _read(self) -> None:
    if self._path is None or not self._path.exists():
      return
    try:
      found = json.loads(self._path.read_text())
      self.seconds |= {name: float(found['seconds'][name]) for name in PHASES}
      self.step, self.taken, self.skipped, self.starts = (
        int(found[name]) for name in ('step', 'taken', 'skipped', 'starts')
      )
    except (ValueError, KeyError, TypeError) as e:
      logging.warning('%s: not a ledger (%s); begun anew', self._path, e)

  def resume(self, step: int) -> None:
    """Goes on from a step; what was made after it is lost."""
    again = max(self.step - step, 0)
    if again and self.taken:
      spent = self.seconds['step'] * min(again / self.taken, 1.0)
      self.seconds['step'] -= spent
      self.seconds['lost'] += spent
    self.step = step

  def enter(self, phase: str) -> None:
    """Ends the present phase and begins another."""
    now = self._clock()
    self.seconds[self.phase] += now - self.since
    self.phase, self.since = phase, now

  @contextlib.contextmanager
  def during(self, phase: str) -> Iterator[None]:
    """A phase inside of another."""
    before = self.phase
    self.enter(phase)
    try:
      yield
    finally:
      self.enter(before)

  def made(self, step: int) -> None:
    """Counts a step."""
    self.step = step
    self.taken += 1
    self.enter(self.phase)

  def write(self, *, now: bool = False) -> None:
    """Puts it on disk, unless that was a moment ago."""
    self.enter(self.phase)
    if self._path is None or not (now or self.since - self._written > _EVERY):
      return
    self._written = self.since
    told = {
      'goodput': round(self.goodput, 4),
      'seconds': {k: round(v, 3) for k, v in self.seconds.items()},
      **{k: getattr(self, k) for k in ('step', 'taken', 'skipped', 'starts')},
    }
    with files.atomic_write(self._path) as temporary:
      temporary.write_text(json.dumps(told, indent=2) + '\n')

  @property
  def goodput(self) -> float:
    """Share of all time that went into steps that count, in [0, 1]."""
    total = sum(self.seconds.values())
    return self.seconds['step'] / total if total else 0.0

  def summary(self) -> str:
    """One line for whoever waited."""
    told = sorted(self.seconds.items(), key=lambda item: -item[1])
    spent = ', '.join(f'{name} {value:.1f}' for name, value in told)
    return (
      f'goodput {100 * self.goodput:.1f} % of '
      f'{sum(self.seconds.values()):.1f} s in {self.starts} start'
      f'{"s" * (self.starts > 1)} ({spent}); {self.taken} steps made, '
      f'{self.skipped} skipped'
    )
