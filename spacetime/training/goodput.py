"""Goodput: where the time of a run goes, summed over all of its starts."""

import contextlib
import json
import time
from collections.abc import Iterator

from absl import logging
from etils import epath

from spacetime.media import files

FILE = 'goodput.json'
# Every second belongs to one phase; goodput is the share of 'step'. 'lost' is
# the time of steps after the last checkpoint of a run that ended, which were
# run again.
PHASES = ('init', 'compile', 'data', 'step', 'evaluate', 'checkpoint', 'lost')
_EVERY = 10.0  # seconds between writes


class Goodput:
  """Adds up wall time by phase, and counts steps, starts and skipped steps.

  Devices run behind the host: where the host waits for data while a device
  still computes, the wait counts as 'data', so that goodput is never reported
  too high.

  Args:
    workdir: folder of goodput.json, which is read and written; None writes
      nothing.
    clock: monotonic seconds.

  Attributes:
    phase: current phase.
    since: when it began, for the watchdog.
    step: last finished step.
    seconds: seconds by phase.
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
      saved = json.loads(self._path.read_text())
      self.seconds |= {name: float(saved['seconds'][name]) for name in PHASES}
      self.step, self.taken, self.skipped, self.starts = (
        int(saved[name]) for name in ('step', 'taken', 'skipped', 'starts')
      )
    except (ValueError, KeyError, TypeError) as e:
      logging.warning(
        '%s: not a goodput file (%s); starts from zero', self._path, e
      )

  def resume(self, step: int) -> None:
    """Resumes from a step; the time of steps after it is lost."""
    again = max(self.step - step, 0)
    if again and self.taken:
      spent = self.seconds['step'] * min(again / self.taken, 1.0)
      self.seconds['step'] -= spent
      self.seconds['lost'] += spent
    self.step = step

  def enter(self, phase: str) -> None:
    """Ends the current phase and begins another."""
    now = self._clock()
    self.seconds[self.phase] += now - self.since
    self.phase, self.since = phase, now

  @contextlib.contextmanager
  def during(self, phase: str) -> Iterator[None]:
    """Times a phase nested within the current one."""
    before = self.phase
    self.enter(phase)
    try:
      yield
    finally:
      self.enter(before)

  def count_step(self, step: int) -> None:
    """Counts a step."""
    self.step = step
    self.taken += 1
    self.enter(self.phase)

  def write(self, *, now: bool = False) -> None:
    """Writes the file, at most every few seconds unless `now`."""
    self.enter(self.phase)
    if self._path is None or not (now or self.since - self._written > _EVERY):
      return
    self._written = self.since
    values = {
      'goodput': round(self.share, 4),
      'seconds': {k: round(v, 3) for k, v in self.seconds.items()},
      **{k: getattr(self, k) for k in ('step', 'taken', 'skipped', 'starts')},
    }
    with files.atomic_write(self._path) as temporary:
      temporary.write_text(json.dumps(values, indent=2) + '\n')

  @property
  def share(self) -> float:
    """Share of all time that went into steps that count, in [0, 1]."""
    total = sum(self.seconds.values())
    return self.seconds['step'] / total if total else 0.0

  def summary(self) -> str:
    """Goodput and seconds by phase, in one line."""
    phases = sorted(self.seconds.items(), key=lambda item: -item[1])
    spent = ', '.join(f'{name} {value:.1f}' for name, value in phases)
    return (
      f'goodput {100 * self.share:.1f} % of '
      f'{sum(self.seconds.values()):.1f} s in {self.starts} start'
      f'{"s" * (self.starts > 1)} ({spent}); {self.taken} steps, '
      f'{self.skipped} skipped'
    )
