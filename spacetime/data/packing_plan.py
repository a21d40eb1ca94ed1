"""Plans of packed batches: which clips share a row, before any is read.

A plan follows from the sizes of the clips alone. Every process computes the
plan of the batches over all processes and reads the clips of its own rows, so
that a batch is the same on any number of processes. Its state, the positions
of the clips in the packing buffer, is the same on all of them.

A position is the place of a clip in the global sequence, from 0.
"""

import collections
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import grain
import numpy as np

from spacetime import SettingError
from spacetime.data.geometry import Geometry
from spacetime.data.packing import Buckets, SequencePacking, choose_row

Size = tuple[int, int, int]


class Plan(grain.IterDataset):
  """Batches over all processes: lists of rows, which are lists of positions.

  Args:
    clip_size: position -> (frames, height, width).
    count: clips in the sequence.
    make_buffer: makes an empty packing buffer.
    rows: packed rows of a batch; 0 for batches of the buffer's own length, a
      clip a row.
  """

  def __init__(
    self,
    clip_size: Callable[[int], Size],
    count: int,
    make_buffer: Callable[[], 'RowBuffer | BucketBuffer'],
    *,
    rows: int = 0,
  ):
    super().__init__()
    self.clip_size, self.count = clip_size, count
    self.make_buffer, self.rows = make_buffer, rows
    self.first, self.step = 0, 1

  def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
    """Keeps every sl.step-th batch from sl.start on: those of one of the
    processes that prepare batches."""
    del sequential_slice
    self.first, self.step = sl.start or 0, sl.step or 1

  def __iter__(self) -> grain.DatasetIterator:
    return _PlanIterator(self)

  def __str__(self) -> str:
    return 'Plan'


class _PlanIterator(grain.DatasetIterator):
  """Its state is relative to the slice of the plan."""

  def __init__(self, plan: Plan):
    super().__init__()
    self._plan = plan
    self.set_state({'taken': 0, 'next': 0, 'buffer': []})

  def __next__(self) -> list[list[int]]:
    for _ in range(self._plan.step - 1 if self._taken else self._plan.first):
      self._batch()
    batch = self._batch()
    self._taken += 1
    return batch

  def _batch(self) -> list[list[int]]:
    if self._plan.rows:
      return [self._choose() for _ in range(self._plan.rows)]
    return [[position] for position in self._choose()]

  def _choose(self) -> list[int]:
    while True:
      at_end = self._next >= self._plan.count
      chosen = self._buffer.choose(at_end)
      if chosen is not None:
        return chosen
      if at_end:
        raise StopIteration
      self._buffer.add(self._next, self._plan.clip_size(self._next))
      self._next += 1

  def get_state(self) -> dict[str, Any]:
    return {
      'taken': self._taken,
      'next': self._next,
      'buffer': self._buffer.positions,
    }

  def set_state(self, state: dict[str, Any]) -> None:
    if not {'taken', 'next', 'buffer'} <= state.keys():
      raise ValueError(
        'the position in the data is that of an earlier version, which packed '
        'clips in another order; start a new run from its weights, with '
        '`checkpoint`'
      )
    self._taken, self._next = state['taken'], state['next']
    self._buffer = self._plan.make_buffer()
    for position in state['buffer']:
      self._buffer.add(position, self._plan.clip_size(position))

  def __str__(self) -> str:
    return 'Plan'


class RowBuffer:
  """Clips that wait for a packed row.

  Args:
    packing: sizes of the rows.
    geometry: (frames, height, width) -> Geometry.
  """

  def __init__(
    self, packing: SequencePacking, geometry: Callable[..., Geometry]
  ):
    self._packing, self._geometry = packing, geometry
    self._waiting: list[tuple[int, Size]] = []

  @property
  def positions(self) -> list[int]:
    """Positions of the clips, the oldest first."""
    return [position for position, _ in self._waiting]

  def add(self, position: int, size: Size) -> None:
    """Adds a clip.

    Raises:
      SettingError: no row can hold it.
    """
    geometry = self._geometry(*size)
    self._packing.check(geometry)
    self._waiting.append((position, geometry.grid))

  def choose(self, at_end: bool) -> list[int] | None:
    """Takes the clips of the next row; None waits for more clips."""
    count = len(self._waiting)
    if not count or (count < self._packing.look_ahead and not at_end):
      return None
    chosen = choose_row([grid for _, grid in self._waiting], self._packing)
    positions = [self._waiting[index][0] for index in chosen]
    for index in sorted(chosen, reverse=True):
      del self._waiting[index]
    return positions


class BucketBuffer:
  """Clips that wait for a full batch of their size.

  Args:
    buckets: length of the buffer.
    batch: (frames, height, width) -> clips of a batch.
  """

  def __init__(self, buckets: Buckets, batch: Callable[[Size], int]):
    self._buckets, self._batch = buckets, batch
    self._by_size: dict[Size, list[int]] = {}
    self._full: list[int] | None = None
    self._count = 0

  @property
  def positions(self) -> list[int]:
    """Positions of the clips, the oldest first."""
    return sorted(p for waiting in self._by_size.values() for p in waiting)

  def add(self, position: int, size: Size) -> None:
    """Adds a clip."""
    waiting = self._by_size.setdefault(size, [])
    waiting.append(position)
    self._count += 1
    if len(waiting) == self._batch(size):
      self._full = self._by_size.pop(size)

  def choose(self, at_end: bool) -> list[int] | None:
    """Takes the clips of the next batch; None waits for more clips.

    Raises:
      SettingError: the buffer is full without a full batch.
    """
    if self._full is not None:
      chosen, self._full = self._full, None
      self._count -= len(chosen)
      return chosen
    if self._count < self._buckets.look_ahead or at_end:
      return None
    needed = sum(self._batch(size) - 1 for size in self._by_size) + 1
    raise SettingError(
      'data.packing.look_ahead',
      self._buckets.look_ahead,
      f'{needed} or more: the buffer holds {len(self._by_size)} sizes and a '
      'full batch of none',
    )


class Reader(grain.IterDataset):
  """Reads the clips of a plan, in threads, while the batch before is used.

  Elements are the rows of a batch that this process holds, each a list of
  clips.

  Args:
    plan: which clips each batch holds.
    clips: clips by position.
    rows: rows of a batch -> those of this process.
    options: threads, and the least number of clips that are read ahead.
  """

  def __init__(
    self,
    plan: Plan,
    clips: grain.MapDataset,
    rows: Callable[[int], Sequence[int]],
    options: grain.ReadOptions,
  ):
    super().__init__(plan)
    self._clips, self._rows, self._options = clips, rows, options

  def __iter__(self) -> grain.DatasetIterator:
    return _ReaderIterator(
      iter(self._parent), self._clips, self._rows, self._options
    )

  def __str__(self) -> str:
    return 'Reader'


class _ReaderIterator(grain.DatasetIterator):
  """Its state is that of the plan after the last batch that was returned."""

  def __init__(self, plan: grain.DatasetIterator, clips, rows, options):
    super().__init__(plan)
    self._waiting = collections.deque()
    self._at_end = False
    self._clips, self._rows = clips, rows
    self._ahead = options.prefetch_buffer_size
    self._executor = None
    if options.num_threads and self._ahead:
      self._executor = futures.ThreadPoolExecutor(options.num_threads)
    self._state = plan.get_state()

  def __next__(self) -> list[list[Any]]:
    if self._executor is None:
      rows = [
        [self._clips[position] for position in row] for row in self._plan()
      ]
      self._state = self._parent.get_state()
      return rows
    self.start_prefetch()
    if not self._waiting:
      raise StopIteration
    rows, state = self._waiting.popleft()
    rows = [[clip.result() for clip in row] for row in rows]
    self._state = state
    return rows

  def _plan(self) -> list[list[int]]:
    """The rows of the next batch that this process holds."""
    batch = next(self._parent)
    return [batch[row] for row in self._rows(len(batch))]

  def start_prefetch(self) -> None:
    """Starts to read the next batches."""
    while self._executor and not self._at_end and self._has_room():
      try:
        rows = self._plan()
      except StopIteration:
        self._at_end = True
        return
      read = [
        [self._executor.submit(self._clips.__getitem__, p) for p in row]
        for row in rows
      ]
      self._waiting.append((read, self._parent.get_state()))

  def _has_room(self) -> bool:
    """Whether less than `_ahead` clips wait beyond the next batch."""
    batches = list(self._waiting)[1:]
    ahead = sum(len(row) for rows, _ in batches for row in rows)
    return not self._waiting or ahead < self._ahead

  def get_state(self) -> dict[str, Any]:
    return self._state

  def set_state(self, state: dict[str, Any]) -> None:
    self._clear()
    self._parent.set_state(state)
    self._state, self._at_end = state, False

  def _clear(self) -> None:
    for rows, _ in self._waiting:
      for row in rows:
        for clip in row:
          clip.cancel()
    self._waiting.clear()

  def close(self) -> None:
    """Ends the threads."""
    self._clear()
    if self._executor is not None:
      self._executor.shutdown(wait=False)

  def __del__(self):
    self._clear()  # or the process would end when all of them have been read

  def __str__(self) -> str:
    return 'Reader'


def stack_clips(rows: Sequence[Sequence[dict]]) -> dict[str, np.ndarray]:
  """A batch of rows of one clip each, all of one size."""
  clips = [clip for (clip,) in rows]
  return {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
