"""Progress of a call: a bar of solver steps, labelled by stage."""

import contextlib
from collections.abc import Callable, Iterator

import tqdm

# Called after each solver step with (steps done, steps in all).
Callback = Callable[[int, int], None]


class Progress:
  """A progress bar on stderr, and the user's callback.

  The bar counts solver steps over all batches of a call; its label is the
  stage: reading, compiling, sampling, decoding.

  Args:
    show: whether to show a bar.
    callback: called after each solver step.
  """

  def __init__(self, *, show: bool = True, callback: Callback | None = None):
    self._show, self._callback = show, callback
    self._bar, self._done, self._steps = None, 0, 0

  @contextlib.contextmanager
  def steps(self, count: int, *, done: int = 0) -> Iterator[None]:
    """Shows a bar of `count` solver steps, of which `done` are done."""
    self._done, self._steps = done, count
    self._bar = tqdm.tqdm(
      total=count,
      initial=done,
      desc='sampling',
      unit='step',
      disable=not self._show,
    )
    try:
      yield
    finally:
      self._bar.close()
      self._bar = None

  def step(self, count: int = 1) -> None:
    """Advances the bar by solver steps."""
    self._done += count
    if self._bar is not None:
      self._bar.update(count)
    if self._callback is not None:
      self._callback(self._done, self._steps)

  @contextlib.contextmanager
  def stage(self, label: str) -> Iterator[None]:
    """Shows a label during a block, on the open bar or on its own line."""
    if not self._show:
      yield
      return
    if self._bar is not None:
      self._bar.set_description(label)
      try:
        yield
      finally:
        self._bar.set_description('sampling')
      return
    with tqdm.tqdm(
      desc=label, bar_format='{desc} {elapsed}', leave=False
    ) as line:
      line.refresh()
      yield


SILENT = Progress(show=False)
