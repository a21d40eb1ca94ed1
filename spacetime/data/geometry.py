"""Sizes in pixels -> latent grid -> token grid: the only file that divides."""

import dataclasses
import math

from spacetime import SettingError


@dataclasses.dataclass(frozen=True)
class Geometry:
  """The three grids of one clip.

  A causal autoencoder turns 1 + k * stride[0] frames into 1 + k latent frames:
  the first frame stands alone, so that a still image is a video of one frame.

  Attributes:
    frames: pixel frames, 1 + k * stride[0].
    height: pixel rows, a multiple of stride[1] * patch[1].
    width: pixel columns, a multiple of stride[2] * patch[2].
    stride: pixels per latent cell in time, height and width.
    patch: latent cells per token in time, height and width.

  Raises:
    SettingError: a size that the grids do not divide; names the nearest ones.
  """

  frames: int
  height: int
  width: int
  stride: tuple[int, int, int]
  patch: tuple[int, int, int]

  def __post_init__(self):
    for name in ('stride', 'patch'):
      value = getattr(self, name)
      if len(value) != 3 or any(v < 1 for v in value):
        raise ValueError(f'{name}={value}: expected three positive integers')
    if self.patch[0] != 1:
      raise ValueError(
        f'patch={self.patch}: expected 1 latent frame per token, since noise '
        'levels belong to latent frames; set model.patch=(1, h, w)'
      )
    step = self.stride[0]
    if self.frames < 1 or (self.frames - 1) % step:
      low = max(1, (self.frames - 1) // step * step + 1)
      raise SettingError(
        'frames', self.frames, f'{step}k+1, such as {low} or {low + step}'
      )
    for axis, name in ((1, 'height'), (2, 'width')):
      size, cell = getattr(self, name), self.stride[axis] * self.patch[axis]
      if size < cell or size % cell:
        low = max(cell, size // cell * cell)
        raise SettingError(
          name,
          size,
          f'a multiple of {cell} (autoencoder stride {self.stride[axis]} x '
          f'patch {self.patch[axis]}), such as {low} or {low + cell}',
        )

  @property
  def latent(self) -> tuple[int, int, int]:
    """Latent frames, height and width (f, h, w)."""
    return (
      1 + (self.frames - 1) // self.stride[0],
      self.height // self.stride[1],
      self.width // self.stride[2],
    )

  @property
  def grid(self) -> tuple[int, int, int]:
    """Tokens along time, height and width."""
    return tuple(n // p for n, p in zip(self.latent, self.patch, strict=True))

  @property
  def tokens(self) -> int:
    """Tokens in the clip, N."""
    return math.prod(self.grid)


def latent_frames(frames: int, *, stride: int) -> int:
  """Latent frames that hold the first `frames` pixel frames, 1 + k * stride."""
  if frames < 1 or (frames - 1) % stride:
    raise ValueError(f'frames={frames}: expected {stride}k+1')
  return 1 + (frames - 1) // stride
