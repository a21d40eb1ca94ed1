"""Patchify: latents <-> a sequence of spacetime patches, with positions."""

import types

import einops
import jax
import numpy as np


def patchify(z_Bfhwc: jax.Array, patch: tuple[int, int, int]) -> jax.Array:
  """Cuts latents into tokens (B, N, V), time-major, then rows, then columns.

  V is ordered (time, row, column, channel), as in Wan's patch embedding.
  """
  return einops.rearrange(
    z_Bfhwc,
    'B (gf pf) (gh ph) (gw pw) c -> B (gf gh gw) (pf ph pw c)',
    pf=patch[0],
    ph=patch[1],
    pw=patch[2],
  )


def unpatchify(
  x_BNV: jax.Array,
  patch: tuple[int, int, int],
  grid: tuple[int, int, int],
) -> jax.Array:
  """The inverse of patchify for a grid of (time, height, width) tokens."""
  return einops.rearrange(
    x_BNV,
    'B (gf gh gw) (pf ph pw c) -> B (gf pf) (gh ph) (gw pw) c',
    gf=grid[0],
    gh=grid[1],
    gw=grid[2],
    pf=patch[0],
    ph=patch[1],
    pw=patch[2],
  )


def positions(grid: tuple[int, int, int]) -> np.ndarray:
  """Returns each token's position (time, height, width), int32 (N, 3)."""
  axes = np.meshgrid(*(np.arange(n) for n in grid), indexing='ij')
  return np.stack(axes, axis=-1).reshape(-1, 3).astype(np.int32)


def position_cosines(
  grid: tuple[int, int, int], frequencies: int
) -> np.ndarray:
  """Returns features of each token's position in its clip, float32 (N, 3 K).

  cos(pi k (i + 1/2) / n), k = 1 to K, for token i of n along each axis: a basis
  of smooth functions between the edges of the clip, whatever its size.

  Source: the discrete cosine transform, Ahmed et al. 1974.
  """
  return cosine_features(positions(grid), np.array(grid), frequencies, xp=np)


def cosine_features(
  position_N3: np.ndarray | jax.Array,
  grid_3: np.ndarray | jax.Array,
  frequencies: int,
  *,
  xp: types.ModuleType,
) -> np.ndarray | jax.Array:
  """Returns position_cosines of tokens at any positions in any grids.

  Args:
    position_N3: int32, (..., N, 3).
    grid_3: tokens along each axis, (3,) or (..., N, 3).
    frequencies: K.
    xp: `numpy` (computes in float64) or `jax.numpy` (float32).

  Returns:
    float32 (..., N, 3 K).
  """
  relative_N3 = (position_N3 + 0.5) / grid_3
  angle_N3K = np.pi * relative_N3[..., None] * np.arange(1, frequencies + 1)
  cosines_NK = xp.cos(angle_N3K).reshape(*position_N3.shape[:-1], -1)
  return cosines_NK.astype(np.float32)
