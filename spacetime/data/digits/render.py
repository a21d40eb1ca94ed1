"""Scenes -> pixels, in NumPy and, jitted by the caller, in JAX."""

import numpy as np

from spacetime.data.digits import glyphs, paths
from spacetime.data.digits import world as world_lib

# Ink below the first value is clear, above the second solid: crisp strokes
# from 8x8 cells.
INK = (0.36, 0.68)
BLOCK = 6 * 64 * 64


def drawing(
  scene: world_lib.Scene, world: world_lib.World
) -> dict[str, np.ndarray]:
  """The scene as arrays of fixed shapes, for `render`.

  Characters are padded to world.max_characters with empty glyphs; drawings of
  one world stack along a leading B.

  Returns:
    A dict of float32: glyph_PGG in [0, 1], colour_PC and end_2C in [0, 255],
    centre_FP2 and size_FP in pixels, ramp_F3 (value at pixel 0, its slopes in
    y and in x), from 0 at the first end to 1 at the second.

  Raises:
    ValueError: more characters than the world allows.
  """
  missing = world.max_characters - len(scene.characters)
  if missing < 0:
    raise ValueError(
      f'{len(scene.characters)} characters: expected at most '
      f'data.world.max_characters={world.max_characters}'
    )
  seen = paths.trajectories(scene, world)
  rows = [c.glyph for c in scene.characters]
  colours = [world_lib.COLOURS[c.colour] for c in scene.characters]
  ends = [scene.background.first, scene.background.second]
  tree = {
    'glyph_PGG': np.pad(glyphs.load()[0][rows], ((0, missing), (0, 0), (0, 0))),
    'colour_PC': np.pad(np.array(colours), ((0, missing), (0, 0))),
    'centre_FP2': np.pad(seen.centre_FP2, ((0, 0), (0, missing), (0, 0))),
    'size_FP': np.pad(
      seen.size_FP, ((0, 0), (0, missing)), constant_values=1.0
    ),
    'ramp_F3': _ramp(scene, world),
    'end_2C': np.array([world_lib.BACKGROUND_COLOURS[end] for end in ends]),
  }
  return {name: leaf.astype(np.float32) for name, leaf in tree.items()}


def _ramp(scene: world_lib.Scene, world: world_lib.World) -> np.ndarray:
  """The background's blend of its ends, affine in pixels, per frame."""
  ramp_F3 = np.zeros((world.frames, 3))
  if scene.background.kind == 'plain':
    return ramp_F3
  axis = ('vertical', 'horizontal').index(scene.background.kind)
  lens = paths.view(scene.camera, world=world)
  # The ends lie beyond the frame by the longest pan, so no pan passes them.
  margin = paths.PAN * world.side
  extent = (world.height, world.width)[axis] + 2 * margin
  first_F2 = lens.unproject(np.full((world.frames, 2), 0.5))
  ramp_F3[:, 0] = (first_F2[:, axis] + margin) / extent
  ramp_F3[:, 1 + axis] = 1 / (lens.zoom_F * extent)
  return ramp_F3


def render(tree, *, height: int, width: int, xp=np):
  """A drawing to frames.

  Written against an array namespace, so that `jax.jit` and `jax.vmap` take it
  with `xp=jax.numpy`; the picture is then the same within 1 of 255. On
  hardware that multiplies float32 in fewer bits, set
  `jax.default_matmul_precision('highest')` round the call.

  Args:
    tree: the dict of `drawing`.
    height: pixel rows.
    width: pixel columns.
    xp: `numpy` or `jax.numpy`.

  Returns:
    frames_FHWC: uint8.
  """
  size_PF = tree['size_FP'].T
  centre_PF2 = tree['centre_FP2'].swapaxes(0, 1)
  rows_PFHG = _weights(centre_PF2[..., 0], size_PF, height, xp)
  columns_PFWG = _weights(centre_PF2[..., 1], size_PF, width, xp)
  low, high = INK
  part_PFHG = rows_PFHG @ (tree['glyph_PGG'] / (high - low))[:, None]

  y_H1 = xp.arange(height, dtype=xp.float32)[:, None]
  x_W = xp.arange(width, dtype=xp.float32)
  base_F11, dy_F11, dx_F11 = xp.moveaxis(tree['ramp_F3'], 1, 0)[..., None, None]
  ramp_FHW = base_F11 + dy_F11 * y_H1 + dx_F11 * x_W

  # The picture is linear in these layers: characters, front to back, then the
  # two ends of the background; one small matmul colours them all.
  clear_FHW = xp.ones_like(ramp_FHW)
  layers = []
  for part_FHG, columns_FWG in zip(part_PFHG, columns_PFWG, strict=True):
    ink_FHW = part_FHG @ columns_FWG.swapaxes(1, 2)
    cover_FHW = xp.clip(ink_FHW - low / (high - low), 0, 1)
    layers.append(cover_FHW * clear_FHW)
    clear_FHW = clear_FHW - layers[-1]
  layers += [clear_FHW, clear_FHW * ramp_FHW]
  first_C, second_C = tree['end_2C']
  # All but the last layer sum to 1, so this half rounds to the nearest byte.
  colour_QC = xp.concatenate(
    [tree['colour_PC'] + 0.5, first_C[None] + 0.5, (second_C - first_C)[None]]
  )
  return (xp.stack(layers, -1) @ colour_QC).astype(xp.uint8)


def _weights(centre_PF, size_PF, pixels: int, xp):
  """Catmull-Rom weights of each glyph cell in each pixel.

  Source: R. Keys, Cubic convolution interpolation (1981), a = -1/2.
  """
  pixel_n = xp.arange(pixels, dtype=xp.float32) + 0.5
  cell_G = xp.arange(glyphs.CELLS, dtype=xp.float32)
  cell_PFn = (pixel_n - centre_PF[..., None]) * (
    glyphs.CELLS / size_PF[..., None]
  )
  away_PFnG = xp.abs(cell_PFn[..., None] + (glyphs.CELLS - 1) / 2 - cell_G)
  near = (1.5 * away_PFnG - 2.5) * away_PFnG * away_PFnG + 1
  far = ((-0.5 * away_PFnG + 2.5) * away_PFnG - 4) * away_PFnG + 2
  return xp.where(
    away_PFnG < 1, near, xp.where(away_PFnG < 2, far, xp.zeros_like(far))
  )


def clip(scene: world_lib.Scene, world: world_lib.World) -> np.ndarray:
  """The scene's frames_FHWC, uint8, by NumPy."""
  tree = drawing(scene, world)
  height, width = world.height, world.width
  frames_FHWC = np.empty((world.frames, height, width, 3), np.uint8)
  # Layers of a few frames stay on the heap; those of a full clip are mapped and
  # unmapped at every step, at three times the cost.
  step = max(1, BLOCK // (height * width))
  for first in range(0, world.frames, step):
    block = slice(first, first + step)
    part = {k: v[block] if '_F' in k else v for k, v in tree.items()}
    frames_FHWC[block] = render(part, height=height, width=width)
  return frames_FHWC
