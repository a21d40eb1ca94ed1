"""Rotary positions along time, height and width.

Source: Su et al. 2021, arXiv 2104.09864; split over three axes as in Wan
2.1 (arXiv 2503.20314).
"""

import jax
import jax.numpy as jnp
import numpy as np


def axis_sizes(head_size: int) -> tuple[int, int, int]:
  """How many of a head's channels turn with time, height and width."""
  side = 2 * (head_size // 6)
  return head_size - 2 * side, side, side


def axis_table(size: int, length: int, *, theta: float) -> np.ndarray:
  """Angles p * theta^(-2i/size), float64 (length, size / 2)."""
  frequency = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
  return np.arange(length, dtype=np.float64)[:, None] * frequency


def tables(position_N3: np.ndarray, *, head_size: int, theta: float):
  """Cosines and sines for every token, float32 (N, E / 2) each.

  Args:
    position_N3: place of each token in the grid (time, height, width).
    head_size: E, even.
    theta: base of the wavelengths; 10,000 in Wan.

  Returns:
    (cos_NE2, sin_NE2), computed in float64.
  """
  angles = [
    axis_table(size, int(position_N3[:, axis].max()) + 1, theta=theta)[
      position_N3[:, axis]
    ]
    for axis, size in enumerate(axis_sizes(head_size))
  ]
  angle = np.concatenate(angles, axis=-1)
  return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def packed_tables(
  position_BN3: jax.Array, *, length: int, head_size: int, theta: float
):
  """The same for tokens whose places are known on the device alone.

  Args:
    position_BN3: int32.
    length: no position reaches it.
    head_size: E, even.
    theta: see tables.

  Returns:
    (cos_BNE2, sin_BNE2), float32.
  """
  angles = [
    axis_table(size, length, theta=theta) for size in axis_sizes(head_size)
  ]

  def at(turn):
    found = [
      jnp.take(turn(table).astype(np.float32), position_BN3[..., axis], axis=0)
      for axis, table in enumerate(angles)
    ]
    return jnp.concatenate(found, axis=-1)

  return at(np.cos), at(np.sin)


def rotate(x_BNAE: jax.Array, cos_NE2, sin_NE2) -> jax.Array:
  """Turns interleaved pairs (x[2i], x[2i+1]) by the angle of their token, of
  tables (N, E / 2) for all rows or (B, N, E / 2) for each."""
  dtype = x_BNAE.dtype
  pairs = x_BNAE.astype(jnp.float32).reshape(*x_BNAE.shape[:-1], -1, 2)
  even, odd = pairs[..., 0], pairs[..., 1]
  cos, sin = cos_NE2[..., None, :], sin_NE2[..., None, :]
  turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
  return turned.reshape(x_BNAE.shape).astype(dtype)
