"""Clips of many sizes in batches of few shapes, with little padding.

Rows hold several clips and images each, cut into patches and put end to end,
so that one shape serves every size. Buckets hold clips of one size, a shape
each, for kernels that cannot keep the clips of a row apart.

Either way clips wait in a list of bounded length, from which a rule takes
those of the next row or batch. What waits is a function of what came, and its
state is the places in the sequence of those that wait: a run that goes on sees
what it would have seen.

Letters: N tokens of a row, G clips in it at most, T latent frames in it at
most, V values in a patch.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from spacetime.data.geometry import Geometry

Item = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rows:
  """How clips are packed into rows.

  Attributes:
    length: N.
    clips: G.
    frames: T; their levels are a table, one row a frame.
    look_ahead: clips that wait, from which a row is chosen.
  """

  length: int
  clips: int
  frames: int
  look_ahead: int = 64

  def __post_init__(self):
    if min(dataclasses.astuple(self)) < 1:
      raise ValueError(
        f'data.packing={dataclasses.asdict(self)}: expected positive integers'
      )

  def check(self, geometry: Geometry) -> None:
    """Raises ValueError for a clip that no row holds."""
    tokens, frames = geometry.tokens, geometry.grid[0]
    if tokens > self.length or frames > self.frames:
      raise ValueError(
        f'a clip of {geometry.frames}x{geometry.height}x{geometry.width} has '
        f'{tokens} tokens in {frames} latent frames: a row holds {self.length} '
        f'in {self.frames}; change data.packing.length, data.packing.frames or '
        'data.world.mixed.volume'
      )


@dataclasses.dataclass(frozen=True)
class Buckets:
  """How clips are gathered into batches of one size.

  Attributes:
    look_ahead: clips that wait; a batch of one size is among so many if it is
      more than sizes x (clips of a batch - 1).
  """

  look_ahead: int

  def check(self, *, sizes: int, batch: int) -> None:
    """Raises ValueError where all that waits may be too few of each size."""
    needed = sizes * (batch - 1) + 1
    if self.look_ahead < needed:
      raise ValueError(
        f'data.packing.look_ahead={self.look_ahead}: expected {needed} for '
        f'{sizes} sizes and data.batch_size={batch}'
      )


@dataclasses.dataclass(frozen=True)
class Cut(grain.transforms.Map):
  """A clip of the pipeline -> its patches.

  Attributes:
    patches: array_FHWC or _fhwc -> x_NV.
    geometry: (frames, height, width) -> Geometry.
    rows: that have to hold it.
  """

  patches: Callable[[np.ndarray], np.ndarray]
  geometry: Callable[..., Geometry]
  rows: Rows

  def map(self, element: Item) -> Item:
    """{'frames' or 'latents', text} -> {'patches', 'grid', text}."""
    rest = dict(element)
    name = 'latents' if 'latents' in rest else 'frames'
    array = rest.pop(name)
    geometry = self.geometry(*array.shape[:3])
    self.rows.check(geometry)
    grid_3 = np.array(geometry.grid, np.int32)
    return rest | {'patches': self.patches(array), 'grid': grid_3}


def measure(
  rows: Rows, grids: Iterator[tuple[int, int, int]], *, count: int = 200
) -> tuple[float, float]:
  """(clips in a row, share of padding), the mean of some rows."""
  waiting, clips, tokens = [], 0, 0
  for _ in range(count):
    missing = rows.look_ahead - len(waiting)
    waiting += itertools.islice(grids, missing)
    chosen = set(fill(waiting, rows))
    clips += len(chosen)
    tokens += sum(math.prod(waiting[i]) for i in chosen)
    waiting = [grid for i, grid in enumerate(waiting) if i not in chosen]
  return clips / count, 1 - tokens / (count * rows.length)


def pack(data: grain.IterDataset, rows: Rows) -> grain.IterDataset:
  """Clips -> rows.

  Args:
    data: of Cut: patches (n, V), grid (3,) and any of one shape, as tokens
      (S,).
    rows: sizes.

  Returns:
    Of dicts: patches (N, V); clip int32 (N,), from 1, 0 where there is none;
    position int32 (N, 3), the token's place in its clip's grid; frame int32
    (N,), its row in the table of levels; grids int32 (G, 3), zeros where there
    is no clip; levels int32 (T, 2), the clip (from 1, 0 for none) and the
    latent frame in it of each row of that table; and of the rest (G, ...).
  """

  def choose(waiting: Sequence[Item], last: bool) -> list[int] | None:
    if len(waiting) < rows.look_ahead and not last:
      return None
    return fill([tuple(item['grid'].tolist()) for item in waiting], rows)

  return _Waiting(data, choose, lambda items: join(items, rows))


def gather(
  data: grain.IterDataset, buckets: Buckets, *, batch: int
) -> grain.IterDataset:
  """Clips -> batches of clips of one size; what fills none at the end of one
  epoch is left out."""

  def choose(waiting: Sequence[Item], last: bool) -> list[int] | None:
    by_shape = {}
    for index, item in enumerate(waiting):
      shape = tuple(np.shape(value) for value in item.values())
      found = by_shape.setdefault(shape, [])
      found.append(index)
      if len(found) == batch:
        return found
    if len(waiting) < buckets.look_ahead or last:
      return None
    raise ValueError(
      f'data.packing.look_ahead={buckets.look_ahead}: {len(by_shape)} sizes '
      f'wait and none has {batch} clips; expected '
      f'{len(by_shape) * (batch - 1) + 1}'
    )

  def stack(items):
    return {name: np.stack([item[name] for item in items]) for name in items[0]}

  return _Waiting(data, choose, stack)


def fill(grids: Sequence[tuple[int, int, int]], rows: Rows) -> list[int]:
  """Which of the waiting clips make the next row: the one that waited longest,
  then each time the largest that there is room for.

  Args:
    grids: tokens along time, height and width of each, the oldest first.
    rows: sizes; every clip fits alone.
  """
  tokens = [math.prod(grid) for grid in grids]
  order = sorted(range(1, len(grids)), key=lambda i: -tokens[i])
  chosen, room = [0], rows.length - tokens[0]
  frames = rows.frames - grids[0][0]
  for index in order:
    if len(chosen) == rows.clips:
      break
    if tokens[index] <= room and grids[index][0] <= frames:
      chosen.append(index)
      room -= tokens[index]
      frames -= grids[index][0]
  return chosen


def join(items: Sequence[Item], rows: Rows) -> dict[str, np.ndarray]:
  """A row of some clips; see `pack`."""
  count = sum(len(item['patches']) for item in items)
  first = items[0]['patches']
  row = {
    'patches': np.zeros((rows.length, *first.shape[1:]), first.dtype),
    'clip': np.zeros(rows.length, np.int32),
    'position': np.zeros((rows.length, 3), np.int32),
    'frame': np.zeros(rows.length, np.int32),
    'grids': np.zeros((rows.clips, 3), np.int32),
    'levels': np.zeros((rows.frames, 2), np.int32),
  }
  row['patches'][:count] = np.concatenate([item['patches'] for item in items])
  token = level = 0
  for number, item in enumerate(items):
    grid_3 = item['grid']
    position_N3 = np.indices(grid_3).reshape(3, -1).T
    own = slice(token, token + len(position_N3))
    row['clip'][own] = number + 1
    row['position'][own] = position_N3
    row['frame'][own] = level + position_N3[:, 0]
    row['grids'][number] = grid_3
    row['levels'][level : level + grid_3[0], 0] = number + 1
    row['levels'][level : level + grid_3[0], 1] = np.arange(grid_3[0])
    token, level = own.stop, level + grid_3[0]
  for name in items[0].keys() - {'patches', 'grid'}:
    one = items[0][name]
    row[name] = np.zeros((rows.clips, *one.shape), one.dtype)
    row[name][: len(items)] = np.stack([item[name] for item in items])
  return row


class _Waiting(grain.IterDataset):
  """Elements wait until `choose` takes some, which `join` makes one."""

  def __init__(self, parent: grain.IterDataset, choose, join):
    super().__init__(parent)
    self._choose, self._join = choose, join

  def __iter__(self) -> grain.DatasetIterator:
    return _WaitingIterator(iter(self._parent), self._choose, self._join)


class _WaitingIterator(grain.DatasetIterator):
  """Its state is where its source stands and where each that waits came from.

  Elements are read again when it is set, each by its place: as many as wait.
  """

  def __init__(self, parent: grain.DatasetIterator, choose, join):
    super().__init__(parent)
    self._choose, self._join = choose, join
    self._waiting: list[tuple[dict[str, Any], Item]] = []
    self._last = False

  def __next__(self):
    while True:
      items = [item for _, item in self._waiting]
      chosen = self._choose(items, self._last) if items else None
      if chosen is not None:
        taken = set(chosen)
        self._waiting = [
          one for i, one in enumerate(self._waiting) if i not in taken
        ]
        return self._join([items[i] for i in chosen])
      if self._last:
        raise StopIteration
      self._read()

  def _read(self) -> None:
    place = self._parent.get_state()
    try:
      self._waiting.append((place, next(self._parent)))
    except StopIteration:
      self._last = True

  def get_state(self) -> dict[str, Any]:
    return {
      'parent': self._parent.get_state(),
      'waiting': [place for place, _ in self._waiting],
    }

  def set_state(self, state: dict[str, Any]) -> None:
    self._waiting, self._last = [], False
    for place in state['waiting']:
      self._parent.set_state(place)
      self._read()
    self._parent.set_state(state['parent'])

  def __str__(self) -> str:
    return 'Waiting'
