"""Rotary position embedding (RoPE) along time, height and width.

Source: Su et al. 2021, arXiv 2104.09864; split over three axes as in Wan
2.1 (arXiv 2503.20314).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from spacetime import SettingError


def axis_sizes(head_size: int) -> tuple[int, int, int]:
  """Splits a head's channels among time, height and width."""
  side = 2 * (head_size // 6)
  return head_size - 2 * side, side, side


def riflex(frequency: np.ndarray, *, length: int, trained: int) -> np.ndarray:
  """RIFLEx: lowers the intrinsic frequency to 0.9 turns over the new length.

  The paper finds this frequency by eye, as the one whose period is nearest to
  where longer videos start to repeat. Here it is the fastest one that made no
  full turn in training, hence the first that would return to the angles of
  early frames; for CogVideoX and HunyuanVideo the authors choose the same. If
  all made a full turn, it is the slowest.

  Args:
    frequency: frequencies of an axis, decreasing, in radians per position.
    length: number of positions, more than in training.
    trained: number of positions of the longest clip in training.

  Returns:
    The frequencies, of which one is lowered, and none is raised.

  Source: Zhao et al. 2025 (RIFLEx), arXiv 2502.15894, equations 7 and 8; the
  factor 0.9 is that of their code.
  """
  candidates = np.flatnonzero(2 * np.pi / frequency >= trained)
  k = candidates[0] if candidates.size else -1
  scaled = frequency.copy()
  scaled[k] = min(scaled[k], 0.9 * 2 * np.pi / length)
  return scaled


def ntk(frequency: np.ndarray, *, length: int, trained: int) -> np.ndarray:
  """NTK-aware scaling: lowers frequencies the more, the slower they are.

  The fastest stays, the slowest is divided by s = length / trained. Equivalent
  to a base of theta * s^(d / (d - 2)) for d channels, which multiplies
  frequency i by s^(-2i / (d - 2)).

  Args:
    frequency, length, trained: see riflex.

  Source: Peng et al. 2023 (YaRN), arXiv 2309.00071, section 3.1.
  """
  exponent = np.linspace(0, 1, len(frequency))
  return frequency * (length / trained) ** -exponent


SCALING_RULES = {'riflex': riflex, 'ntk': ntk}
SCALINGS = ('none', *SCALING_RULES)


@dataclasses.dataclass(frozen=True)
class Scaling:
  """RoPE scaling along time for clips longer than in training.

  Attributes:
    kind: one of SCALING_RULES.
    trained: latent frames of the longest clip in training; nothing changes up
      to this length.

  Raises:
    SettingError: an unknown kind.
    ValueError: a length below 1.
  """

  kind: str
  trained: int

  def __post_init__(self):
    if self.kind not in SCALING_RULES:
      raise SettingError(
        'rope_scaling', self.kind, f'one of {[*SCALING_RULES]}'
      )
    if self.trained < 1:
      raise ValueError(f'trained={self.trained}: expected 1 or more')

  def __call__(self, frequency: np.ndarray, length: int) -> np.ndarray:
    """Returns the frequencies for a clip of `length` latent frames."""
    if length <= self.trained:
      return frequency
    return SCALING_RULES[self.kind](
      frequency, length=length, trained=self.trained
    )


def axis_table(
  size: int, length: int, *, theta: float, scaling: Scaling | None = None
) -> np.ndarray:
  """Returns angles p * theta^(-2i/size), float64 (length, size / 2); scaling
  may change the frequencies."""
  frequency = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
  if scaling is not None:
    frequency = scaling(frequency, length)
  return np.arange(length, dtype=np.float64)[:, None] * frequency


def tables(
  position_N3: np.ndarray,
  *,
  head_size: int,
  theta: float,
  scaling: Scaling | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Computes RoPE tables: cosines and sines, float32 (N, E / 2) each.

  Args:
    position_N3: position of each token in the grid (time, height, width).
    head_size: E, even.
    theta: base of the wavelengths; 10,000 in Wan.
    scaling: RoPE scaling along time.

  Returns:
    (cos_NE2, sin_NE2), computed in float64.
  """
  rules = (scaling, None, None)
  angles = [
    axis_table(size, int(p_N.max()) + 1, theta=theta, scaling=rule)[p_N]
    for size, p_N, rule in zip(
      axis_sizes(head_size), position_N3.T, rules, strict=True
    )
  ]
  angle = np.concatenate(angles, axis=-1)
  return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def packed_tables(
  position_BN3: jax.Array, *, length: int, head_size: int, theta: float
) -> tuple[jax.Array, jax.Array]:
  """Computes RoPE tables for positions that are arrays on the device.

  Args:
    position_BN3: int32.
    length: upper bound of the positions, exclusive.
    head_size: E, even.
    theta: see tables.

  Returns:
    (cos_BNE2, sin_BNE2), float32.
  """
  angles = [
    axis_table(size, length, theta=theta) for size in axis_sizes(head_size)
  ]

  def lookup(function):
    parts = [
      jnp.take(
        function(table).astype(np.float32), position_BN3[..., axis], axis=0
      )
      for axis, table in enumerate(angles)
    ]
    return jnp.concatenate(parts, axis=-1)

  return lookup(np.cos), lookup(np.sin)


def rotate(
  x_BNAE: jax.Array,
  cos_NE2: np.ndarray | jax.Array,
  sin_NE2: np.ndarray | jax.Array,
) -> jax.Array:
  """Rotates interleaved pairs (x[2i], x[2i+1]) by the angle of their token.

  Args:
    x_BNAE: queries or keys.
    cos_NE2, sin_NE2: tables, (N, E / 2) for the batch or (B, N, E / 2).
  """
  dtype = x_BNAE.dtype
  pairs = x_BNAE.astype(jnp.float32).reshape(*x_BNAE.shape[:-1], -1, 2)
  even, odd = pairs[..., 0], pairs[..., 1]
  cos, sin = cos_NE2[..., None, :], sin_NE2[..., None, :]
  rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
  return rotated.reshape(x_BNAE.shape).astype(dtype)
