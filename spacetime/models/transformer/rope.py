"""Rotary positions along time, height and width.

Source: Su et al. 2021, arXiv 2104.09864; split over three axes as in Wan
2.1 (arXiv 2503.20314).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


def axis_sizes(head_size: int) -> tuple[int, int, int]:
  """How many of a head's channels turn with time, height and width."""
  side = 2 * (head_size // 6)
  return head_size - 2 * side, side, side


def riflex(frequency: np.ndarray, *, length: int, trained: int) -> np.ndarray:
  """Lowers the intrinsic frequency until 0.9 of its turn holds the new length.

  The paper finds it by eye: its period is nearest to where longer videos begin
  to repeat. Here it is the fastest that made no whole turn in training, so the
  first whose return to the angles of early frames is new; the authors' choice
  for CogVideoX and HunyuanVideo is the same. Where all made one, the slowest.

  Args:
    frequency: of an axis, falling, radians a place.
    length: places now, more than were trained on.
    trained: places of the longest clip trained on.

  Returns:
    The same but for one, which is never raised.

  Source: Zhao et al. 2025 (RIFLEx), arXiv 2502.15894, equations 7 and 8; 0.9
  is their code's.
  """
  whole = np.flatnonzero(2 * np.pi / frequency >= trained)
  k = whole[0] if whole.size else -1
  found = frequency.copy()
  found[k] = min(found[k], 0.9 * 2 * np.pi / length)
  return found


def ntk(frequency: np.ndarray, *, length: int, trained: int) -> np.ndarray:
  """Lowers all but the fastest, the slowest by s = length / trained.

  It is a base of theta * s^(d / (d - 2)) for d channels, of which frequency i
  has the share s^(-2i / (d - 2)).

  Args:
    frequency, length, trained: see riflex.

  Source: Peng et al. 2023 (YaRN), arXiv 2309.00071, section 3.1.
  """
  share = np.linspace(0, 1, len(frequency))
  return frequency * (length / trained) ** -share


RULES = {'riflex': riflex, 'ntk': ntk}
SCALINGS = ('none', *RULES)


@dataclasses.dataclass(frozen=True)
class Scaling:
  """How frequencies of time change in clips longer than those trained on.

  Attributes:
    kind: of RULES.
    trained: latent frames of the longest clip trained on; up to there nothing
      changes.
  """

  kind: str
  trained: int

  def __post_init__(self):
    if self.kind not in RULES or self.trained < 1:
      raise ValueError(
        f'rope_scaling={self.kind!r} beyond {self.trained} latent frames: '
        f'expected one of {[*RULES]} and 1 or more; change --rope_scaling'
      )

  def __call__(self, frequency: np.ndarray, length: int) -> np.ndarray:
    """The frequencies of a clip of so many latent frames."""
    if length <= self.trained:
      return frequency
    return RULES[self.kind](frequency, length=length, trained=self.trained)


def axis_table(
  size: int, length: int, *, theta: float, scaling: Scaling | None = None
) -> np.ndarray:
  """Angles p * theta^(-2i/size), float64 (length, size / 2), of frequencies
  that scaling may change."""
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
):
  """Cosines and sines for every token, float32 (N, E / 2) each.

  Args:
    position_N3: place of each token in the grid (time, height, width).
    head_size: E, even.
    theta: base of the wavelengths; 10,000 in Wan.
    scaling: of time.

  Returns:
    (cos_NE2, sin_NE2), computed in float64.
  """
  rules = (scaling, None, None)
  angles = [
    axis_table(size, int(place_N.max()) + 1, theta=theta, scaling=rule)[place_N]
    for size, place_N, rule in zip(
      axis_sizes(head_size), position_N3.T, rules, strict=True
    )
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
