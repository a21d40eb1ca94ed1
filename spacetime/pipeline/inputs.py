"""Videos, images and masks that sampling is given, at its window's size."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from spacetime.data import geometry
from spacetime.media import video_reader

# A video is cut to the proportions of the window by less than this.
CROP = 0.05


def read(
  path: str, flag: str, grid: geometry.Geometry, *, fps: float
) -> np.ndarray:
  """All frames of a video at the window's size, uint8 (F, H, W, 3).

  Raises:
    ValueError: unreadable, or of other proportions.
  """
  height, width = video_size(path, flag)
  scale = min(height / grid.height, width / grid.width)
  kept = grid.height * grid.width * scale**2 / (height * width)
  if kept < 1 - CROP:
    raise ValueError(
      f'--{flag}={path} is {width}x{height} pixels: expected the proportions '
      f'of {grid.width}x{grid.height}; change --size, such as '
      f'--size={nearest_size(height, width, grid)}, or crop it'
    )
  return read_sized(path, flag, height=grid.height, width=grid.width, fps=fps)


def read_sized(
  path: str, flag: str, *, height: int, width: int, fps: float
) -> np.ndarray:
  """All frames of a video, whatever its proportions, uint8 (F, H, W, 3).

  Raises:
    ValueError: unreadable.
  """
  settings = dict(frames=None, height=height, width=width, fps=fps)
  return _opened(flag, 'a video', video_reader.read_video, path, **settings)


def video_size(path: str, flag: str) -> tuple[int, int]:
  """Rows and columns of a video, upright.

  Raises:
    ValueError: unreadable.
  """
  return _opened(flag, 'a video', video_reader.video_size, path)


def read_image(path: str, flag: str, grid: geometry.Geometry) -> np.ndarray:
  """An image, its centre cut to the window's proportions, uint8 (H, W, 3).

  Raises:
    ValueError: unreadable.
  """
  settings = dict(height=grid.height, width=grid.width)
  return _opened(flag, 'an image', video_reader.read_image, path, **settings)


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
      f'{size[1]}x{size[0]}, as --video is, or {grid.width}x{grid.height}, as '
      'what is made of it'
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
  path: str,
  video: Sequence,
  needed: int,
  *,
  flag: str,
  by: str,
  grid: geometry.Geometry,
  fps: float,
) -> None:
  """Refuses a video that is too short.

  Args:
    path: of the video.
    video: its frames.
    needed: how many are asked for.
    flag: that names it.
    by: the flag that asks, 'frames' or 'given'.
    grid: of the window.
    fps: that it was read at.

  Raises:
    ValueError: it names the nearest number that the video has.
  """
  if len(video) < needed:
    nearest = len(video)
    if by == 'frames':
      nearest = 1 + (nearest - 1) // grid.stride[0] * grid.stride[0]
    raise ValueError(
      f'--{flag}={path} has {len(video)} frames at {fps} a second: expected '
      f'{needed} or more; the nearest that it has is --{by}={nearest}'
    )


def _opened(flag: str, kind: str, read: Callable, path: str, **settings) -> Any:
  """What `read` finds in a file, its faults told of the flag."""
  try:
    return read(path, **settings)
  except ValueError as e:
    raise ValueError(
      f'--{flag}: {e}: expected {kind} file; change --{flag}'
    ) from e
