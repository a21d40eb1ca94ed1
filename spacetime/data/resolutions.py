"""Sizes that training clips are drawn from, for models of many sizes."""

import dataclasses
import functools

import numpy as np

from spacetime import SettingError


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Durations and frame sizes within bounds, on the grid of the patches.

  Attributes:
    frames: fewest and most frames; a clip has 1 + k * multiple[0].
    height: smallest and largest height in pixels, multiples of multiple[1].
    width: smallest and largest width in pixels, multiples of multiple[1].
    multiple: pixels of a patch, in time and along a side.
    aspect: largest ratio of the longer side to the shorter.
    volume: most pixels in a clip, frames x height x width; None for no bound.
    images: share of clips with one frame, 0 to 1.
    held_out: sizes (frames, height, width) that no clip has.

  Raises:
    SettingError: bounds that no clip fits, or a value out of range.
  """

  frames: tuple[int, int] = (1, 49)
  height: tuple[int, int] = (32, 128)
  width: tuple[int, int] = (32, 128)
  multiple: tuple[int, int] = (4, 16)
  aspect: float = 2.0
  volume: int | None = None
  images: float = 0.15
  held_out: tuple[tuple[int, int, int], ...] = ()

  def __post_init__(self):
    for name in ('frames', 'height', 'width', 'multiple'):
      pair = tuple(getattr(self, name))
      object.__setattr__(self, name, pair)
      if len(pair) != 2 or min(pair) < 1:
        raise SettingError(f'data.mixed.{name}', pair, 'two positive integers')
    held_out = tuple(tuple(size) for size in self.held_out)
    object.__setattr__(self, 'held_out', held_out)
    if any(len(size) != 3 for size in held_out):
      raise SettingError(
        'data.mixed.held_out', held_out, '(frames, height, width) each'
      )
    if self.aspect < 1:
      raise SettingError('data.mixed.aspect', self.aspect, '1 or more')
    if not 0 <= self.images <= 1:
      raise SettingError('data.mixed.images', self.images, 'a share, 0 to 1')
    for frames in self.durations:
      if not self.sides(frames):
        raise ValueError(
          f'no clip of {frames} frames has height {self.height}, width '
          f'{self.width}, multiples of {self.multiple[1]}, aspect up to '
          f'{self.aspect} and {self.volume} pixels: expected other bounds in '
          'data.mixed'
        )
    if not self.durations:
      raise SettingError(
        'data.mixed.frames',
        self.frames,
        f'bounds that include 1 plus a multiple of {self.multiple[0]}, or '
        '`data.mixed.images` of 1',
      )

  @functools.cached_property
  def durations(self) -> tuple[int, ...]:
    """Possible numbers of frames, 1 among them if there are images."""
    first, last = self.frames
    step = self.multiple[0]
    durations = range(1 + -(-(first - 1) // step) * step, last + 1, step)
    moving = tuple(n for n in durations if n > 1) if self.images < 1 else ()
    if self.images < 1 and not moving:
      return ()
    return (1, *moving) if self.images else moving

  def sides(self, frames: int) -> tuple[tuple[int, int], ...]:
    """Possible (height, width) of a clip of so many frames."""
    return _sides(self, frames)

  @property
  def shapes(self) -> list[tuple[int, int, int]]:
    """Every (frames, height, width)."""
    return [(n, *side) for n in self.durations for side in self.sides(n)]

  def draw(self, rng: np.random.Generator) -> tuple[int, int, int]:
    """Draws (frames, height, width): an image or not, then the duration, then
    the sides, each with equal probability."""
    image = rng.random() < self.images
    moving = [n for n in self.durations if n > 1]
    frames = 1 if image else moving[rng.integers(len(moving))]
    sides = self.sides(frames)
    return (frames, *sides[rng.integers(len(sides))])


@functools.lru_cache(maxsize=256)
def _sides(sizes: Sizes, frames: int) -> tuple[tuple[int, int], ...]:
  step = sizes.multiple[1]

  def along(bounds):
    return range(-(-bounds[0] // step) * step, bounds[1] + 1, step)

  return tuple(
    (height, width)
    for height in along(sizes.height)
    for width in along(sizes.width)
    if max(height, width) <= sizes.aspect * min(height, width)
    and (sizes.volume is None or frames * height * width <= sizes.volume)
    and (frames, height, width) not in sizes.held_out
  )
