"""Digit classifier of segmented characters, fitted on training glyphs."""

import functools

import numpy as np
from scipy import ndimage
from sklearn import svm

from spacetime.data.digits import glyphs, render
from spacetime.data.digits import world as world_lib
from spacetime.evaluation import segments

# Edge of a normalised crop, and the ink's longer side in it, in cells.
EDGE, REACH = 16, 14
VERSIONS = 4
SEED = 0


def crop(cover_HW: np.ndarray) -> np.ndarray:
  """Normalises a blob's opacity: centred and scaled to one size.

  Args:
    cover_HW: opacity in [0, 1], any size.

  Returns:
    crop_GG: float32, EDGE x EDGE; the ink's longer side is REACH cells.
  """
  ink_HW = cover_HW > segments.OPAQUE
  spans = [np.flatnonzero(ink_HW.any(axis)) for axis in (1, 0)]
  middles = [(span[0] + span[-1]) / 2 for span in spans]
  scale = max(span[-1] - span[0] + 1 for span in spans) / REACH
  rows_GH, columns_GW = (
    _resample(middle, scale, pixels)
    for middle, pixels in zip(middles, cover_HW.shape, strict=True)
  )
  return (rows_GH @ cover_HW @ columns_GW.T).astype(np.float32)


def _resample(middle: float, scale: float, pixels: int) -> np.ndarray:
  """Tent weights of pixels in cells `scale` pixels apart about the middle."""
  cell_G = middle + (np.arange(EDGE) - (EDGE - 1) / 2) * scale
  width = max(scale, 1)
  away_Gn = np.abs(cell_G[:, None] - np.arange(pixels)) / width
  return np.maximum(1 - away_Gn, 0) / width


@functools.cache
def reach() -> tuple[float, ...]:
  """The ink's longer side as a share of a glyph's square, of each digit."""
  extent_n = 2 * glyphs.extents().max(1)
  return tuple(
    float(np.median(extent_n[glyphs.indices(digit, held_out=False)]))
    for digit in range(10)
  )


@functools.cache
def classifier() -> svm.SVC:
  """The classifier; the first call fits it, on training glyphs only.

  Glyphs are augmented as in clips: rendered in several sizes, positions and
  colours, sharp or blurred, clean or noisy, and segmented again.
  """
  crop_RGG, digit_R = training_crops()
  flat_Rn = crop_RGG.reshape(len(crop_RGG), -1)
  return svm.SVC(C=10, gamma=0.02).fit(flat_Rn, digit_R)


def classify(covers: list[np.ndarray]) -> int:
  """Classifies a character by the summed margins of several views.

  Args:
    covers: cover_HW of at least one blob of the character.

  Returns:
    0 to 9.
  """
  crop_RGG = np.stack([crop(cover_HW) for cover_HW in covers])
  margin_Rn = classifier().decision_function(crop_RGG.reshape(len(covers), -1))
  return int(margin_Rn.sum(0).argmax())


def training_crops() -> tuple[np.ndarray, np.ndarray]:
  """Normalised crops of training glyphs, and their digits."""
  rng = np.random.default_rng(SEED)
  known = [
    (digit, glyph)
    for digit in range(10)
    for glyph in glyphs.indices(digit, held_out=False)
  ]
  world = world_lib.World(
    frames=1, height=40, width=40, max_characters=1, motions=('still',)
  )
  crops, digits = [], []
  for version in range(VERSIONS):
    for digit, glyph in known:
      frames_FHWC = _rendered(
        rng, digit, int(glyph), min(version, 2), world=world
      )
      blobs = segments.blobs(frames_FHWC)
      if blobs:
        crops.append(crop(max(blobs, key=lambda blob: blob.area).cover_HW))
        digits.append(digit)
  return np.stack(crops), np.array(digits)


def _rendered(rng, digit: int, glyph: int, blur: int, *, world) -> np.ndarray:
  colours = tuple(world_lib.BACKGROUND_COLOURS)
  ground = colours[rng.integers(len(colours))]
  character = world_lib.Character(
    digit=digit,
    glyph=glyph,
    colour=world.colours[rng.integers(len(world.colours))],
    size='small',
    start=tuple(rng.uniform(19, 21, 2)),
    motion='still',
    speed='slow',
  )
  scene = world_lib.Scene(
    characters=(character,),
    background=world_lib.Background('plain', ground, ground),
    camera='still',
  )
  tree = render.drawing(scene, world)
  tree['size_FP'] = rng.uniform(15, 33, (1, 1)).astype(np.float32)
  frames_FHWC = render.render(tree, height=world.height, width=world.width)
  if not blur:
    return frames_FHWC
  sigma = (0, blur * rng.uniform(0.2, 0.5), blur * rng.uniform(0.2, 0.5), 0)
  soft_FHWC = ndimage.gaussian_filter(frames_FHWC.astype(np.float32), sigma)
  soft_FHWC += rng.normal(0, 4 * blur, soft_FHWC.shape)
  return soft_FHWC.clip(0, 255).astype(np.uint8)
