"""Sequence packing: clips of many sizes in batches of few shapes.

Packed rows hold several clips and images each, as patches end to end, so that
one shape serves every size. Buckets hold clips of one size, one shape a size,
for attention kernels that cannot separate the clips of a row.

In both cases clips enter a packing buffer of bounded length, from which a rule
takes those of the next row or batch: see packing_plan.py.

Letters: N tokens of a row, G most clips in it, T most latent frames in it,
V values in a patch.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from spacetime import SettingError
from spacetime.data.geometry import Geometry

Item = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class SequencePacking:
  """Sizes of packed rows.

  Attributes:
    length: tokens in a row, N.
    clips: most clips in a row, G.
    frames: most latent frames in a row, T; each has its own noise level.
    look_ahead: clips in the packing buffer, from which a row is chosen.
  """

  length: int
  clips: int
  frames: int
  look_ahead: int = 64

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value < 1:
        raise SettingError(f'data.packing.{name}', value, '1 or more')

  def check(self, geometry: Geometry) -> None:
    """Raises ValueError for a clip that fits in no row."""
    tokens, frames = geometry.tokens, geometry.grid[0]
    text = f'a clip of {geometry.frames}x{geometry.height}x{geometry.width}'
    if tokens > self.length:
      raise SettingError(
        'data.packing.length', self.length, f'{tokens} or more, for {text}'
      )
    if frames > self.frames:
      raise SettingError(
        'data.packing.frames', self.frames, f'{frames} or more, for {text}'
      )


@dataclasses.dataclass(frozen=True)
class Buckets:
  """Batches of clips of one size each.

  Attributes:
    look_ahead: clips in the packing buffer. It always holds a full batch of one
      size if it is more than sizes x (clips of a batch - 1).
    tokens: of a batch, about: a batch of small clips has more of them. 0 has
      data.batch_size clips of any size.
  """

  look_ahead: int
  tokens: int = 0

  def check(self, *, sizes: int, batch: int) -> None:
    """Raises SettingError if the buffer may hold no full batch."""
    needed = sizes * (batch - 1) + 1
    if self.look_ahead < needed:
      raise SettingError(
        'data.packing.look_ahead',
        self.look_ahead,
        f'{needed} or more, for {sizes} sizes and `data.batch_size` of {batch}',
      )


@dataclasses.dataclass(frozen=True)
class Patchify:
  """Splits a clip of the pipeline into patches, on the host.

  Attributes:
    patches: array_FHWC or array_fhwc -> x_NV.
    geometry: (frames, height, width) -> Geometry.
    packing: sizes of the rows that must hold the clip.
    encodes: whether `patches` runs a network, as processes that render cannot.
  """

  patches: Callable[[np.ndarray], np.ndarray]
  geometry: Callable[..., Geometry]
  packing: SequencePacking
  encodes: bool = False

  def __call__(self, element: Item) -> Item:
    """{'frames' or 'latents', text} -> {'patches', 'grid', text}."""
    rest = dict(element)
    name = 'latents' if 'latents' in rest else 'frames'
    array = rest.pop(name)
    geometry = self.geometry(*array.shape[:3])
    self.packing.check(geometry)
    grid_3 = np.array(geometry.grid, np.int32)
    return rest | {'patches': self.patches(array), 'grid': grid_3}


@dataclasses.dataclass(frozen=True)
class RowMeans:
  """Means over packed rows.

  Attributes:
    clips: clips in a row.
    padding: share of padding.
    cost: sum over the clips of a row of what each costs, such as FLOPs.
  """

  clips: float
  padding: float
  cost: float


def measure(
  packing: SequencePacking,
  grids: Iterator[tuple[int, int, int]],
  *,
  count: int = 200,
  cost: Callable[[tuple[int, int, int]], float] = lambda grid: 0.0,
) -> RowMeans:
  """The means over `count` rows of clips of these grids."""
  buffer, clips, tokens, total = [], 0, 0, 0.0
  for _ in range(count):
    missing = packing.look_ahead - len(buffer)
    buffer += itertools.islice(grids, missing)
    chosen = set(choose_row(buffer, packing))
    clips += len(chosen)
    tokens += sum(math.prod(buffer[i]) for i in chosen)
    total += sum(cost(buffer[i]) for i in chosen)
    buffer = [grid for i, grid in enumerate(buffer) if i not in chosen]
  padding = 1 - tokens / (count * packing.length)
  return RowMeans(clips / count, padding, total / count)


def choose_row(
  grids: Sequence[tuple[int, int, int]], packing: SequencePacking
) -> list[int]:
  """Chooses the clips of the next row from the buffer.

  The oldest clip comes first, then repeatedly the largest that still fits.

  Args:
    grids: tokens of each clip along time, height and width, the oldest first.
    packing: sizes; every clip fits in an empty row.
  """
  tokens = [math.prod(grid) for grid in grids]
  order = sorted(range(1, len(grids)), key=lambda i: -tokens[i])
  chosen, room = [0], packing.length - tokens[0]
  frames = packing.frames - grids[0][0]
  for index in order:
    if len(chosen) == packing.clips:
      break
    if tokens[index] <= room and grids[index][0] <= frames:
      chosen.append(index)
      room -= tokens[index]
      frames -= grids[index][0]
  return chosen


def collate(
  items: Sequence[Item], packing: SequencePacking
) -> dict[str, np.ndarray]:
  """Concatenates the patches of some clips into a row.

  Args:
    items: elements of Patchify: patches (n, V), grid (3,), and arrays of one
      shape, such as tokens (S,).
    packing: sizes.

  Returns:
    patches (N, V); segment_ids int32 (N,), the clip of each token, from 1, 0
    for padding; positions int32 (N, 3), the token's place in the grid of its
    clip; frame_ids int32 (N,), the token's row in frame_table; frame_table
    int32 (T, 2), the clip (from 1, 0 for none) and its latent frame of each
    noise level; grids int32 (G, 3), tokens of each clip along time, height and
    width, zeros for none; and the other arrays (G, ...).
  """
  count = sum(len(item['patches']) for item in items)
  first = items[0]['patches']
  row = {
    'patches': np.zeros((packing.length, *first.shape[1:]), first.dtype),
    'segment_ids': np.zeros(packing.length, np.int32),
    'positions': np.zeros((packing.length, 3), np.int32),
    'frame_ids': np.zeros(packing.length, np.int32),
    'grids': np.zeros((packing.clips, 3), np.int32),
    'frame_table': np.zeros((packing.frames, 2), np.int32),
  }
  row['patches'][:count] = np.concatenate([item['patches'] for item in items])
  token = frame = 0
  for number, item in enumerate(items):
    grid_3 = item['grid']
    position_N3 = np.indices(grid_3).reshape(3, -1).T
    tokens = slice(token, token + len(position_N3))
    frames = slice(frame, frame + grid_3[0])
    row['segment_ids'][tokens] = number + 1
    row['positions'][tokens] = position_N3
    row['frame_ids'][tokens] = frame + position_N3[:, 0]
    row['grids'][number] = grid_3
    row['frame_table'][frames, 0] = number + 1
    row['frame_table'][frames, 1] = np.arange(grid_3[0])
    token, frame = tokens.stop, frames.stop
  for name in items[0].keys() - {'patches', 'grid'}:
    one = items[0][name]
    row[name] = np.zeros((packing.clips, *one.shape), one.dtype)
    row[name][: len(items)] = np.stack([item[name] for item in items])
  return row
