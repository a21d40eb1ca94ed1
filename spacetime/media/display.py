"""Frames as they are shown: upright, with square pixels, resized, cropped."""

import numpy as np
from PIL import Image

# Largest share of the area that is cropped without a word.
CROP = 0.05
UPRIGHT = (1.0, 0.0, 0.0, 1.0)


def turn(
  image_HWC: np.ndarray, matrix: tuple[float, float, float, float]
) -> np.ndarray:
  """Rotates and mirrors a frame as its display matrix asks.

  Args:
    image_HWC: (H, W, C).
    matrix: a, b, c, d of ISO/IEC 14496-12, 6.2.2: a pixel at (x, y) is shown at
      (a x + c y, b x + d y). Of other angles than quarter turns, the nearest.

  Returns:
    (H, W, C) or (W, H, C).
  """
  a, b, c, d = matrix
  if turns_sideways(matrix):
    image_HWC = image_HWC.swapaxes(0, 1)
    a, d = c, b
  if a < 0:
    image_HWC = image_HWC[:, ::-1]
  if d < 0:
    image_HWC = image_HWC[::-1]
  return np.ascontiguousarray(image_HWC)


def turns_sideways(matrix: tuple[float, float, float, float]) -> bool:
  """Whether columns are shown as rows."""
  a, b, c, d = matrix
  return abs(b) + abs(c) > abs(a) + abs(d)


def square_size(
  height: int, width: int, pixel_aspect: float
) -> tuple[int, int]:
  """Height and width with square pixels: rows stay, columns change.

  Args:
    height: stored rows.
    width: stored columns.
    pixel_aspect: width of a pixel by its height.
  """
  return height, max(1, round(width * pixel_aspect))


def fit(
  image: Image.Image, *, height: int, width: int, pixel_aspect: float = 1.0
) -> np.ndarray:
  """An image whose short side is resized and whose centre is cropped, in one
  resampling: uint8 (H, W, 3)."""
  if image.size == (width, height) and pixel_aspect == 1:
    return np.asarray(image)
  scale = min(image.width * pixel_aspect / width, image.height / height)
  crop_width, crop_height = scale * width / pixel_aspect, scale * height
  left = (image.width - crop_width) / 2
  top = (image.height - crop_height) / 2
  box = (
    *(max(0, left), max(0, top)),
    *(
      min(image.width, left + crop_width),
      min(image.height, top + crop_height),
    ),
  )
  return np.asarray(
    image.resize((width, height), Image.Resampling.BICUBIC, box=box)
  )


def cropped_share(
  height: int, width: int, *, to_height: int, to_width: int
) -> float:
  """Share of the area, 0 to 1, that `fit` cuts off."""
  proportions = (height * to_width) / (width * to_height)
  return 1 - min(proportions, 1 / proportions)
