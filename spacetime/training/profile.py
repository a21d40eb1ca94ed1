"""Traces of some steps for the profiler (xprof, TensorBoard)."""

import dataclasses
import os
import re

import jax


@dataclasses.dataclass
class Profile:
  """Writes a trace of the steps start to stop, both included.

  The loop asks it after every step, as it asks what else happens then. In the
  trace stand the names of modules and of jax.named_scope.

  Attributes:
    start: first step of the trace.
    stop: last one.
    folder: where the trace goes.
  """

  start: int
  stop: int
  folder: str | os.PathLike
  running: bool = False

  def begin(self, done: int) -> None:
    """Starts at once if the next step is in the span; call before the loop.

    Args:
      done: steps of the run already made.
    """
    if self.start <= done + 1 <= self.stop:
      self._start()

  def due(self, step: int, last: int) -> bool:
    """Whether something happens after this step."""
    if self.running:
      return step in (self.stop, last)
    return step == self.start - 1 and step != last

  def call(self, step: int, state) -> None:
    """Starts or stops, once the device has done what it was given."""
    del step
    jax.block_until_ready(state)
    if self.running:
      self.end()
    else:
      self._start()

  def end(self) -> None:
    """Writes what there is, if a trace is under way."""
    if self.running:
      self.running = False
      jax.profiler.stop_trace()

  def _start(self) -> None:
    jax.profiler.start_trace(self.folder)
    self.running = True


def parse(text: str | None, folder: str | os.PathLike) -> Profile | None:
  """The flag --profile=START:STOP; None is none.

  Raises:
    ValueError: not two steps in order.
  """
  if not text:
    return None
  found = re.fullmatch(r'(\d+):(\d+)', text)
  if not found or not 1 <= int(found.group(1)) <= int(found.group(2)):
    raise ValueError(
      f'--profile={text}: expected START:STOP, the first and the last step to '
      'trace, such as 10:12'
    )
  return Profile(int(found.group(1)), int(found.group(2)), folder)
