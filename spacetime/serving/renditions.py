"""Thumbnail and spritesheet of a video."""

import io

import numpy as np
from PIL import Image

COLUMNS, ROWS = 4, 4
SIDE = 240  # longest side of a frame in pixels


def thumbnail(frames_FHWC: np.ndarray) -> bytes:
  """The middle frame as WebP."""
  return _encode(_small(frames_FHWC[len(frames_FHWC) // 2]), 'WEBP')


def spritesheet(frames_FHWC: np.ndarray) -> bytes:
  """Frames at equal distances in a grid, as JPEG."""
  count = min(COLUMNS * ROWS, len(frames_FHWC))
  index = np.linspace(0, len(frames_FHWC) - 1, count).round().astype(int)
  images = [_small(frames_FHWC[i]) for i in index]
  width, height = images[0].size
  columns = min(COLUMNS, count)
  rows = -(-count // columns)
  sheet = Image.new('RGB', (columns * width, rows * height))
  for i, image in enumerate(images):
    sheet.paste(image, (i % columns * width, i // columns * height))
  return _encode(sheet, 'JPEG')


def _small(image_HWC: np.ndarray) -> Image.Image:
  image = Image.fromarray(image_HWC)
  image.thumbnail((SIDE, SIDE))
  return image


def _encode(image: Image.Image, kind: str) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, kind, quality=85)
  return buffer.getvalue()
