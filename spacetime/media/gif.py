"""Frames -> an animated GIF that loops for ever."""

import fractions
import pathlib

import numpy as np
from PIL import Image

MOST = 50  # frames a second


def write(
  path: pathlib.Path, frames_FHWC: np.ndarray, *, rate: fractions.Fraction
) -> None:
  """Writes frames, uint8 (F, H, W, 3), at `rate` per second, at most 50."""
  # One palette for all frames avoids flicker.
  count, height, width, _ = frames_FHWC.shape
  tall = Image.fromarray(
    np.ascontiguousarray(frames_FHWC).reshape(count * height, width, 3)
  )
  palette = tall.quantize(256, method=Image.Quantize.MEDIANCUT)
  images = [
    Image.fromarray(np.ascontiguousarray(image_HWC)).quantize(
      palette=palette, dither=Image.Dither.NONE
    )
    for image_HWC in frames_FHWC
  ]
  # GIF counts hundredths of a second. Rounding the times, not the lengths,
  # keeps the duration of the clip. Many players slow down a length below 2.
  times = [round(i * 100 / rate) for i in range(count + 1)]
  lengths = [
    10 * max(2, b - a) for a, b in zip(times[:-1], times[1:], strict=True)
  ]
  images[0].save(
    path,
    save_all=True,
    append_images=images[1:],
    duration=lengths,
    loop=0,
    optimize=False,
  )
