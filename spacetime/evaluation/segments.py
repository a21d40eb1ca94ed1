"""Segments frames into a smooth background and blobs of palette colours.

Letters: R blobs, T tracks, K palette colours, n pixels in a list.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from spacetime.data.digits import world

COLOURS = tuple(world.COLOURS)
# Sums over three channels: a matrix product is ten times faster than `sum`.
_ONE_C = np.ones(3, np.float32)
PALETTE_KC = np.array(list(world.COLOURS.values()), np.float32)

# A pixel is foreground if a channel differs by this much from the background.
CONTRAST = 50
# Least opacity of ink; the rim of a stroke has less.
OPAQUE = 0.45
# A clip contains a colour if it is the nearest one for at least this share of
# its ink and this many pixels per frame of 64 x 64.
COLOUR_SHARE = 0.04
COLOUR_AREA = 10
# Blobs of one colour within this distance in pixels are one character.
BRIDGE = 4
# Blobs below this share of the largest of their colour and frame are dropped.
SPECK = 0.12


@dataclasses.dataclass(frozen=True)
class Blob:
  """One connected patch of one colour in one frame.

  Attributes:
    frame: index of the frame.
    colour: a name in world.COLOURS.
    centre_2: (y, x) of the ink's centroid, in pixels.
    area: number of pixels of ink.
    cover_HW: opacity in [0, 1], cropped to the blob's box plus one pixel.
  """

  frame: int
  colour: str
  centre_2: np.ndarray
  area: int
  cover_HW: np.ndarray

  @property
  def extent(self) -> int:
    """The longer side of the ink's box, in pixels."""
    ink_HW = self.cover_HW > OPAQUE
    spans = [np.flatnonzero(ink_HW.any(axis)) for axis in (0, 1)]
    return int(max(span[-1] - span[0] + 1 for span in spans))


def background(frames_FHWC: np.ndarray) -> np.ndarray:
  """The affine ramp under each frame: ground_FHWC, float32 in [0, 255].

  Args:
    frames_FHWC: uint8.
  """
  _, height, width, _ = frames_FHWC.shape
  fit_F3C = fit_ground(frames_FHWC)
  plane_HW3 = _plane(height, width)
  ground_FHWC = np.einsum('hwp,fpc->fhwc', plane_HW3, fit_F3C, optimize=True)
  return ground_FHWC.clip(0, 255)


def fit_ground(frames_FHWC: np.ndarray) -> np.ndarray:
  """Fits an affine ramp to each frame by iteratively reweighted least squares.

  The weights 1 / |residual| make it a fit of least absolute deviations, robust
  to characters that cover up to a quarter of the frame.

  Args:
    frames_FHWC: uint8.

  Returns:
    fit_F3C: float32; value in the middle, its slopes along y and along x, where
    y and x go from -1 to 1 over the frame.

  Source: P. Holland and R. Welsch, Robust regression using iteratively
    reweighted least-squares (1977).
  """
  _, height, width, _ = frames_FHWC.shape
  step = max(1, min(height, width) // 32)
  some_FHWC = frames_FHWC[:, ::step, ::step].astype(np.float32)
  value_FnC = some_FHWC.reshape(len(some_FHWC), -1, 3)
  plane_HW3 = _plane(height, width)
  plane_n3 = plane_HW3[::step, ::step].reshape(-1, 3)
  weight_Fn = np.ones(value_FnC.shape[:2], np.float32)
  for _ in range(12):
    weighted_F3n = weight_Fn[:, None] * plane_n3.T
    fit_F3C = np.linalg.solve(
      weighted_F3n @ plane_n3 + 1e-6 * np.eye(3), weighted_F3n @ value_FnC
    ).astype(np.float32)
    away_Fn = np.abs(value_FnC - plane_n3 @ fit_F3C) @ _ONE_C
    weight_Fn = 1 / np.maximum(away_Fn, 3)
  return fit_F3C


def _plane(height: int, width: int) -> np.ndarray:
  y_H1 = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
  x_1W = np.linspace(-1, 1, width, dtype=np.float32)[None]
  one_HW = np.ones((height, width), np.float32)
  return np.stack([one_HW, one_HW * y_H1, one_HW * x_1W], -1)


def blobs(frames_FHWC: np.ndarray) -> list[Blob]:
  """Segments a clip into blobs, ordered by frame.

  Args:
    frames_FHWC: uint8.
  """
  ground_FHWC = background(frames_FHWC)
  difference_FHWC = frames_FHWC - ground_FHWC
  red_FHW, green_FHW, blue_FHW = np.moveaxis(np.abs(difference_FHWC), 3, 0)
  most_FHW = np.maximum(np.maximum(red_FHW, green_FHW), blue_FHW)
  index_n = np.flatnonzero(most_FHW > CONTRAST)
  difference_nC = difference_FHWC.reshape(-1, 3)[index_n]
  ground_nC = ground_FHWC.reshape(-1, 3)[index_n]
  shape = frames_FHWC.shape[:3]
  result = []
  cover_nK, colour_n = _colours(difference_nC, ground_nC, shape)
  for k in np.unique(colour_n):
    cover_FHW = np.zeros(shape, np.float32)
    chosen_n = colour_n == k
    cover_FHW.reshape(-1)[index_n[chosen_n]] = cover_nK[chosen_n, k]
    result += _components(cover_FHW.clip(0, 1), COLOURS[k])
  return sorted(result, key=lambda blob: blob.frame)


def _colours(difference_nC, ground_nC, shape):
  """Opacity of each pixel for each colour, and the colour of each pixel.

  The opacity is the pixel's position on the line from the background to the
  colour; a pixel has the colour with the least distance from its line.
  """
  frames, height, width = shape
  direction_nKC = PALETTE_KC - ground_nC[:, None]
  dot_nK = np.einsum('nkc,nc->nk', direction_nKC, difference_nC)
  length_nK = np.square(direction_nKC) @ _ONE_C
  cover_nK = (dot_nK / np.maximum(length_nK, 1)).clip(0, 1.1)
  miss_nKC = difference_nC[:, None] - cover_nK[..., None] * direction_nKC
  error_nK = np.square(miss_nKC) @ _ONE_C
  first_n = error_nK.argmin(1)
  opaque_n = np.take_along_axis(cover_nK, first_n[:, None], 1)[:, 0] > OPAQUE
  count_K = np.bincount(first_n[opaque_n], minlength=len(COLOURS))
  least = COLOUR_AREA * frames * height * width / 64**2
  seen_K = count_K >= max(least, COLOUR_SHARE * count_K.sum())
  if not seen_K.any():
    return cover_nK[:0], first_n[:0]
  return cover_nK, np.where(seen_K, error_nK, np.inf).argmin(1)


def _components(cover_FHW: np.ndarray, colour: str) -> list[Blob]:
  """Connected components of one colour, with gaps of BRIDGE pixels closed."""
  frames, height, width = cover_FHW.shape
  ink_FHW = cover_FHW > OPAQUE
  near = np.ones((1, 1 + BRIDGE, 1 + BRIDGE), bool)
  plane = np.zeros((3, 3, 3), bool)
  plane[1] = True
  label_FHW, number = ndimage.label(
    ndimage.binary_dilation(ink_FHW, near), structure=plane
  )
  inked_FHW = label_FHW * ink_FHW
  area_R = np.bincount(inked_FHW.ravel(), minlength=number + 1)[1:]
  boxes = ndimage.find_objects(inked_FHW, number)
  largest_F = np.zeros(frames, int)
  for box, area in zip(boxes, area_R, strict=True):
    if box is not None:
      frame = box[0].start
      largest_F[frame] = max(largest_F[frame], area)
  least = COLOUR_AREA * height * width / 64**2
  result = []
  for r, (box, area) in enumerate(zip(boxes, area_R, strict=True), 1):
    if box is None or area < least or area < SPECK * largest_F[box[0].start]:
      continue
    frame, top, left = (side.start for side in box)
    rows = slice(max(0, top - 1), min(height, box[1].stop + 1))
    columns = slice(max(0, left - 1), min(width, box[2].stop + 1))
    mine_HW = label_FHW[frame, rows, columns] == r
    cover_HW = cover_FHW[frame, rows, columns] * mine_HW
    corner_2 = (rows.start + 0.5, columns.start + 0.5)
    centre_2 = np.array(ndimage.center_of_mass(cover_HW)) + corner_2
    result.append(Blob(frame, colour, centre_2, int(area), cover_HW))
  return result
