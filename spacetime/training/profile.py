"""Traces of some steps for the profiler (xprof, TensorBoard)."""

import dataclasses
import os
import re
import warnings

import jax

from spacetime import SettingError, SettingWarning


@dataclasses.dataclass
class Profile:
  """A periodic action that writes a trace of the steps start to stop, both
  included, with the names of modules and of jax.named_scope.

  Attributes:
    start: first step of the trace.
    stop: last step of the trace.
    folder: folder of the trace.
  """

  start: int
  stop: int
  folder: str | os.PathLike
  running: bool = False

  def begin(self, done: int, last: int) -> None:
    """Starts the trace if the next step is in it; call before the loop.

    Warns if no step of the trace is to come.

    Args:
      done: finished steps of the run.
      last: last step of the run.
    """
    if not done < self.stop or self.start > last:
      warnings.warn(
        SettingWarning(
          'profile',
          f'{self.start}:{self.stop}',
          f'no effect, since the steps to come are {done + 1} to {last}',
        ),
        stacklevel=2,
      )
    if self.start <= done + 1 <= self.stop:
      self._start()

  def due(self, step: int, last: int) -> bool:
    """Whether the trace starts or stops after this step."""
    if self.running:
      return step in (self.stop, last)
    return step == self.start - 1 and step != last

  def call(self, step: int, state) -> None:
    """Starts or stops the trace, once the device has finished."""
    del step
    jax.block_until_ready(state)
    if self.running:
      self.end()
    else:
      self._start()

  def end(self) -> None:
    """Writes the trace if it is running."""
    if self.running:
      self.running = False
      jax.profiler.stop_trace()

  def _start(self) -> None:
    jax.profiler.start_trace(self.folder)
    self.running = True


def parse(text: str | None, folder: str | os.PathLike) -> Profile | None:
  """Parses START:STOP, the steps to trace; None traces none.

  Raises:
    SettingError: not two steps in order.
  """
  if not text:
    return None
  match = re.fullmatch(r'(\d+):(\d+)', text)
  if not match or not 1 <= int(match.group(1)) <= int(match.group(2)):
    raise SettingError(
      'profile',
      text,
      'START:STOP, the first and the last step to trace, such as 10:12',
    )
  return Profile(int(match.group(1)), int(match.group(2)), folder)
