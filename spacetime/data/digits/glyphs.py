"""Handwritten digits as 8x8 masks: training and held-out glyphs."""

import functools

import numpy as np
from sklearn import datasets

CELLS = 8
HOLD_OUT_EVERY = 5


@functools.cache
def load() -> tuple[np.ndarray, np.ndarray]:
  """All glyphs and their digits.

  Returns:
    glyph_NGG: float32 in [0, 1], read-only, (1797, 8, 8); 1 is ink.
    digit_N: int64 in 0..9, read-only.

  Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits
    (UCI, 1998), as scikit-learn ships it.
  """
  bunch = datasets.load_digits()
  glyph_NGG = (bunch.images / 16).astype(np.float32)
  digit_N = bunch.target.copy()
  glyph_NGG.setflags(write=False)
  digit_N.setflags(write=False)
  return glyph_NGG, digit_N


@functools.cache
def indices(digit: int, *, held_out: bool) -> np.ndarray:
  """Glyph numbers of one digit: every fifth of its class is held out.

  Args:
    digit: 0 to 9.
    held_out: the held-out glyphs instead of the training glyphs.

  Returns:
    Ascending glyph numbers, rows of load().

  Raises:
    ValueError: not a digit.
  """
  if digit not in range(10):
    raise ValueError(f'digit={digit}: expected 0 to 9')
  members = np.flatnonzero(load()[1] == digit)
  chosen = np.arange(len(members)) % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1
  return members[chosen if held_out else ~chosen]


@functools.cache
def extents() -> np.ndarray:
  """Half height and half width of each glyph's ink about the cell centre.

  Returns:
    half_N2: float32 in [0, 0.5], as a share of the glyph's size.
  """
  ink_NGG = load()[0] > 0.125
  reach_G = np.abs(np.arange(CELLS) - (CELLS - 1) / 2) + 0.5
  rows_N = (ink_NGG.any(2) * reach_G).max(1)
  columns_N = (ink_NGG.any(1) * reach_G).max(1)
  return (np.stack([rows_N, columns_N], 1) / CELLS).astype(np.float32)
