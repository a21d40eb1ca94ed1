"""Latents <-> a sequence of spacetime patches, and each patch's position."""

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
  """Each token's place (time, height, width) in the grid, int32 (N, 3)."""
  axes = np.meshgrid(*(np.arange(n) for n in grid), indexing='ij')
  return np.stack(axes, axis=-1).reshape(-1, 3).astype(np.int32)
