"""Batches of one stage after another, with a state that resumes within any."""

from collections.abc import Sequence
from typing import Any

import grain


def chain(
  parts: Sequence[grain.IterDataset], steps: Sequence[int]
) -> grain.IterDataset:
  """Batches of each part in turn: steps[i] of part i, the last without end.

  The state of its iterator is the part, the batches taken of it and the state
  within, so that a run is resumed within any stage.
  """
  return _Chain(parts, steps)


class _Chain(grain.IterDataset):
  """See `chain`."""

  def __init__(self, parts, steps):
    super().__init__(list(parts))
    self._parts, self._steps = list(parts), list(steps)

  def __iter__(self) -> grain.DatasetIterator:
    return _ChainIterator(self._parts, self._steps)


class _ChainIterator(grain.DatasetIterator):
  """Opens each part when its turn comes."""

  def __init__(self, parts, steps):
    super().__init__()
    self._parts, self._steps = parts, steps
    self._number, self._taken, self._iterator = 0, 0, None

  def __next__(self):
    last = self._number == len(self._parts) - 1
    if not last and self._taken == self._steps[self._number]:
      self._open(self._number + 1, 0)
    batch = next(self._current())
    self._taken += 1
    return batch

  def _open(self, number: int, taken: int) -> None:
    if self._iterator is not None:
      self._iterator.close()
    self._number, self._taken, self._iterator = number, taken, None

  def _current(self):
    if self._iterator is None:
      self._iterator = iter(self._parts[self._number])
    return self._iterator

  def start_prefetch(self) -> None:
    """Starts what prepares the batches of the current stage."""
    self._current().start_prefetch()

  def close(self) -> None:
    """Ends what prepares batches."""
    if self._iterator is not None:
      self._iterator.close()

  def get_state(self) -> dict[str, Any]:
    return {
      'stage': self._number,
      'taken': self._taken,
      'inner': self._current().get_state(),
    }

  def set_state(self, state: dict[str, Any]) -> None:
    self._open(state['stage'], state['taken'])
    self._current().set_state(state['inner'])

  def __str__(self) -> str:
    return 'Chain'
