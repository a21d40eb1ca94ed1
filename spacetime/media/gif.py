"""Frames -> a GIF that loops for ever."""

import fractions
import pathlib

import numpy as np
from PIL import Image


def write(
  path: pathlib.Path, frames_FHWC: np.ndarray, *, rate: fractions.Fraction
) -> None:
  """Writes frames, uint8 (F, H, W, 3), at `rate` a second, 50 at most."""
  # One palette for all frames, of all their colours: none flickers.
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
  # GIF counts hundredths of a second; round the times, not the lengths, so that
  # the clip keeps its duration. Many players slow down a length below 2.
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
