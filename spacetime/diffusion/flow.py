"""Rectified flow with a noise level for every latent frame.

  z_t = (1 - t) z + t noise,   velocity = d z_t / d t = noise - z

Source: Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv
2210.02747; distribution of t as in Esser et al. 2024 (SD3), arXiv 2403.03206.
"""

import dataclasses
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from spacetime import SettingError

PREDICTIONS = ('velocity', 'sample')
# Beyond these all levels are 0 or 1 in float32.
MAX_SHIFT, MAX_STD = 1_000_000, 100
# Bounds that leave less of the distribution than this are refused: what is left
# is a tail that float32 cannot draw from.
MIN_SHARE = 1e-3


@dataclasses.dataclass(frozen=True)
class FlowConfig:
  """Output of the network, and distribution of noise levels in training.

  Attributes:
    prediction: 'velocity', or 'sample' (the clean latents; the loss is still on
      the velocity: Li & He 2025, JiT, arXiv 2511.13720).
    mean: mean of logit(t) before the shift.
    std: standard deviation of logit(t).
    shift: s in t' = s t / (1 + (s - 1) t); above 1 moves t towards noise.
    floor: smallest t by which a predicted sample is divided.
    reference: tokens of a clip for which the shift holds; for other clips it
      scales with the square root of their tokens. None has one shift for all.
    low: smallest noise level that is trained, after the shift: the distribution
      is cut there. None is 0, or the boundary where the weights that a run
      starts from are the high-noise one of two transformers.
    high: largest noise level that is trained. None is 1, or the boundary where
      they are the low-noise one.
  """

  prediction: str = 'velocity'
  mean: float = 0.0
  std: float = 1.0
  shift: float = 1.0
  floor: float = 0.05
  reference: int | None = None
  low: float | None = None
  high: float | None = None

  def __post_init__(self):
    if self.prediction not in PREDICTIONS:
      raise SettingError(
        'flow.prediction', self.prediction, f'one of {PREDICTIONS}'
      )
    if self.reference is not None and self.reference < 1:
      raise SettingError(
        'flow.reference', self.reference, 'a number of tokens or None'
      )
    for name in ('shift', 'std'):
      if getattr(self, name) <= 0:
        raise SettingError(f'flow.{name}', getattr(self, name), 'more than 0')
    for name, most in (('shift', MAX_SHIFT), ('std', MAX_STD)):
      if not getattr(self, name) <= most:
        raise SettingError(
          f'flow.{name}', getattr(self, name), f'at most {most}'
        )
    if not 0 < self.floor < 1:
      raise SettingError('flow.floor', self.floor, 'between 0 and 1')
    self._check_bounds()

  def _check_bounds(self) -> None:
    low, high = self.bounds
    if not 0 <= low < 1:
      raise SettingError('flow.low', low, '0 or more, below 1')
    if not 0 < high <= 1:
      raise SettingError('flow.high', high, 'above 0, at most 1')
    if low >= high:
      raise SettingError('flow.low', low, f'below `flow.high`={high}')
    share = self.share_within()
    if share < MIN_SHARE:
      raise SettingError(
        'flow.low' if low > 0 else 'flow.high',
        low if low > 0 else high,
        f'noise levels {low} to {high} with at least {MIN_SHARE:.1%} of the '
        f'distribution of `flow.mean`={self.mean}, `flow.std`={self.std} and '
        f'`flow.shift`={self.shift}, not {share:.1e}',
      )

  @property
  def bounds(self) -> tuple[float, float]:
    """The smallest and the largest noise level of training."""
    low = 0.0 if self.low is None else self.low
    return low, 1.0 if self.high is None else self.high

  def trains(self, t: float) -> bool:
    """Whether a noise level is within the bounds."""
    low, high = self.bounds
    return low <= t <= high

  def share_within(self) -> float:
    """The share of the distribution without bounds that lies within them."""
    normal = statistics.NormalDist(self.mean, self.std)
    low, high = (
      normal.cdf(_logit(shifted(t, 1 / self.shift))) if 0 < t < 1 else t
      for t in self.bounds
    )
    return high - low


def per_frame(t_Bf: jax.Array) -> jax.Array:
  """Noise levels (B, f) or (B, 1), ready to multiply latents (B, f, h, w, c);
  those of cells, (B, f, h, w, 1), and of tokens, (B, N, 1), are so already."""
  return t_Bf[:, :, None, None, None] if t_Bf.ndim == 2 else t_Bf


def per_cell(t_BT: jax.Array, t_index_fhw: jax.Array | None) -> jax.Array:
  """A table of noise levels, ready to multiply latents.

  Args:
    t_BT: the table, (B, f) or (B, 1) without an index.
    t_index_fhw: index in the table for each latent cell; None is that of its
      frame.
  """
  if t_index_fhw is None:
    return per_frame(t_BT)
  return jnp.take(t_BT, t_index_fhw, axis=1, mode='clip')[..., None]


def add_noise(z_Bfhwc, noise_Bfhwc, t_Bf):
  """The point at t on the straight path from data to noise."""
  t = per_frame(t_Bf)
  return (1 - t) * z_Bfhwc + t * noise_Bfhwc


def velocity(z_Bfhwc, noise_Bfhwc):
  """The derivative of the path in t: the target of the network."""
  return noise_Bfhwc - z_Bfhwc


def to_velocity(z_t_Bfhwc, x_Bfhwc, t_Bf, *, floor: float):
  """The velocity of a predicted sample; t is floored near data."""
  return (z_t_Bfhwc - x_Bfhwc) / per_frame(jnp.maximum(t_Bf, floor))


def shifted(t, shift: float):
  """t' = s t / (1 + (s - 1) t): keeps 0 and 1, moves values between them."""
  return shift * t / (1 + (shift - 1) * t)


def _logit(t: float) -> float:
  return math.log(t / (1 - t))


def size_shift(config: FlowConfig, tokens):
  """The shift for clips of `tokens` tokens, at least 1 where it scales.

  Larger clips have more tokens with the same content, which at equal noise are
  easier to denoise.

  Source: Esser et al. 2024, section 5.3.2: the root of the ratio.
  """
  if config.reference is None:
    return config.shift
  ratio, xp = tokens / config.reference, jnp
  if isinstance(ratio, float):  # known now: nothing to compile
    ratio, xp = np.float32(ratio), np
  return xp.maximum(xp.float32(config.shift) * xp.sqrt(ratio), xp.float32(1))


def sample_timesteps(
  key: jax.Array, shape, config: FlowConfig, *, tokens=None, factor=1.0
) -> jax.Array:
  """Logit-normal noise levels in (0, 1), shifted; float32.

  With bounds the distribution is truncated: levels outside of them are not
  drawn, and the others keep their relative density.

  Args:
    key: random key.
    shape: shape of the result.
    config: distribution.
    tokens: tokens of each clip, broadcast to the shape; read if config has a
      reference.
    factor: of the shift of each clip, broadcast to the shape.
  """
  shift = factor * size_shift(config, tokens)
  low, high = config.bounds
  if (low, high) == (0.0, 1.0):
    normal = config.mean + config.std * jax.random.normal(key, shape)
    return shifted(jax.nn.sigmoid(normal), shift)

  def standardised(t):
    if t in (0.0, 1.0):
      return -jnp.inf if t == 0 else jnp.inf
    logit = jax.scipy.special.logit(shifted(t, 1 / jnp.asarray(shift)))
    return (logit - config.mean) / config.std

  normal = jax.random.truncated_normal(
    key,
    jnp.broadcast_to(standardised(low), shape),
    jnp.broadcast_to(standardised(high), shape),
  )
  t = shifted(jax.nn.sigmoid(config.mean + config.std * normal), shift)
  return jnp.clip(t, low, high)


def frame_loss(v_Bfhwc, target_Bfhwc) -> jax.Array:
  """Mean squared error of each latent frame, float32 (B, f)."""
  error = v_Bfhwc.astype(jnp.float32) - target_Bfhwc.astype(jnp.float32)
  return jnp.mean(jnp.square(error), axis=(2, 3, 4))


def masked_mean(loss_Bf, cond_mask_Bf) -> jax.Array:
  """Mean over latent frames outside of the mask; a float32 scalar."""
  weight_Bf = 1.0 - cond_mask_Bf.astype(jnp.float32)
  return jnp.sum(loss_Bf * weight_Bf) / jnp.maximum(jnp.sum(weight_Bf), 1.0)
