"""Videos and masks that sampling is given, read at the size of its window."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from spacetime import geometry
from spacetime.data import clips

# A video is cut to the proportions of the window by less than this.
CROP = 0.05


def read(
  path: str, flag: str, grid: geometry.Geometry, *, fps: float
) -> np.ndarray:
  """All frames of a video at the window's size, uint8 (F, H, W, 3).

  Raises:
    ValueError: unreadable, or of other proportions.
  """
  height, width = clips.video_size(path)
  scale = min(height / grid.height, width / grid.width)
  kept = grid.height * grid.width * scale**2 / (height * width)
  if kept < 1 - CROP:
    raise ValueError(
      f'--{flag}={path} is {width}x{height} pixels: expected the proportions '
      f'of {grid.width}x{grid.height}; change --size, such as '
      f'--size={nearest_size(height, width, grid)}, or crop it'
    )
  return clips.read_video(
    path, frames=None, height=grid.height, width=grid.width, fps=fps
  )


def nearest_size(height: int, width: int, grid: geometry.Geometry) -> str:
  """The size that a model holds nearest to these proportions, about as large
  as its window, as --size has it."""
  scale = (grid.height * grid.width / (height * width)) ** 0.5
  sides = [
    max(1, round(scale * size / (cell * patch))) * cell * patch
    for size, cell, patch in zip(
      (width, height),
      (grid.stride[2], grid.stride[1]),
      (grid.patch[2], grid.patch[1]),
      strict=True,
    )
  ]
  return f'{sides[0]}x{sides[1]}'


def read_mask(
  path: str, grid: geometry.Geometry, *, size: tuple[int, int]
) -> np.ndarray:
  """What an image shows lighter than black, at the window's size: bool (H, W).

  Args:
    path: the image.
    grid: of the window.
    size: of the video as it was read, (height, width).

  Raises:
    ValueError: no image, one of another size, all black or all light.
  """
  if not pathlib.Path(path).is_file():
    raise ValueError(f'--mask={path}: no such file')
  try:
    with Image.open(path) as opened:
      mask = opened.convert('L')
  except (OSError, SyntaxError, Image.DecompressionBombError) as e:
    raise ValueError(f'--mask={path}: not an image ({e})') from e
  if mask.size not in (size[::-1], (grid.width, grid.height)):
    raise ValueError(
      f'--mask={path} is {mask.width}x{mask.height} pixels: expected '
      f'{size[1]}x{size[0]}, as --video is'
    )
  # A pixel of the window that any new one falls on is new.
  light = mask.point(lambda value: 255 * (value > 127))
  new_HW = (
    np.asarray(light.resize((grid.width, grid.height), Image.Resampling.BOX))
    > 0
  )
  if new_HW.all() or not new_HW.any():
    raise ValueError(
      f'--mask={path} is all {"light" if new_HW.all() else "black"}: expected '
      'light where the picture is made anew, and black where it stays'
    )
  return new_HW


def check_length(
  path: str, video: Sequence, needed: int, flag: str, grid, fps: float
) -> None:
  """Raises ValueError unless a video has the frames that a flag asks of it."""
  if len(video) < needed:
    nearest = len(video)
    if flag == '--frames':
      nearest = 1 + (nearest - 1) // grid.stride[0] * grid.stride[0]
    raise ValueError(
      f'{path} has {len(video)} frames at {fps} a second: expected {needed} or '
      f'more; the nearest that it has is {flag}={nearest}'
    )
