"""Rectified flow with a noise level for every latent frame.

  z_t = (1 - t) z + t noise,   velocity = d z_t / d t = noise - z

Source: Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv
2210.02747; levels as in Esser et al. 2024 (SD3), arXiv 2403.03206.
"""

import dataclasses

import jax
import jax.numpy as jnp

PREDICTIONS = ('velocity', 'sample')


@dataclasses.dataclass(frozen=True)
class FlowConfig:
  """What the network predicts and at which levels it learns.

  Attributes:
    prediction: 'velocity', or 'sample' (the clean latents; the loss is on the
      velocity all the same: Li & He 2025, JiT, arXiv 2511.13720).
    mean: mean of logit(t) before the shift.
    std: standard deviation of logit(t).
    shift: s in t' = s t / (1 + (s - 1) t); above 1 moves levels to noise.
    floor: the least t that a predicted sample is divided by.
    reference: tokens of a clip for which the shift holds; others have more or
      less of it, by the root of their tokens. None has one shift for all.
  """

  prediction: str = 'velocity'
  mean: float = 0.0
  std: float = 1.0
  shift: float = 1.0
  floor: float = 0.05
  reference: int | None = None

  def __post_init__(self):
    if self.prediction not in PREDICTIONS:
      raise ValueError(
        f'flow.prediction={self.prediction!r}: expected one of {PREDICTIONS}'
      )
    if self.reference is not None and self.reference < 1:
      raise ValueError(
        f'flow.reference={self.reference}: expected a number of tokens or None'
      )
    if self.shift <= 0 or self.std <= 0 or not 0 < self.floor < 1:
      raise ValueError(
        f'flow.shift={self.shift}, flow.std={self.std}, flow.floor='
        f'{self.floor}: expected shift > 0, std > 0 and 0 < floor < 1'
      )


def per_frame(t_Bf: jax.Array) -> jax.Array:
  """Levels (B, f) or (B, 1), ready to multiply latents (B, f, h, w, c); those
  of cells, (B, f, h, w, 1), and of tokens, (B, N, 1), are so already."""
  return t_Bf[:, :, None, None, None] if t_Bf.ndim == 2 else t_Bf


def noised(z_Bfhwc, noise_Bfhwc, t_Bf):
  """The point at level t on the straight path from data to noise."""
  t = per_frame(t_Bf)
  return (1 - t) * z_Bfhwc + t * noise_Bfhwc


def velocity(z_Bfhwc, noise_Bfhwc):
  """The derivative of the path in t: what the network learns."""
  return noise_Bfhwc - z_Bfhwc


def to_sample(z_t_Bfhwc, v_Bfhwc, t_Bf):
  """The clean latents that a velocity at level t points to."""
  return z_t_Bfhwc - per_frame(t_Bf) * v_Bfhwc


def to_velocity(z_t_Bfhwc, x_Bfhwc, t_Bf, *, floor: float):
  """The velocity that a predicted sample means; t is floored near data."""
  return (z_t_Bfhwc - x_Bfhwc) / per_frame(jnp.maximum(t_Bf, floor))


def shifted(t, shift: float):
  """t' = s t / (1 + (s - 1) t): keeps 0 and 1, moves what lies between."""
  return shift * t / (1 + (shift - 1) * t)


def size_shift(config: FlowConfig, tokens):
  """The shift of clips of so many tokens, at least 1 where it grows with them.

  The more tokens, the more of a clip is seen through the same noise.

  Source: Esser et al. 2024, section 5.3.2: the root of the ratio.
  """
  if config.reference is None:
    return config.shift
  return jnp.maximum(config.shift * jnp.sqrt(tokens / config.reference), 1.0)


def sample_levels(
  key: jax.Array, shape, config: FlowConfig, *, tokens=None
) -> jax.Array:
  """Logit-normal levels in (0, 1), shifted; float32.

  Args:
    key: of the draw.
    shape: of the result.
    config: levels.
    tokens: of each clip, to broadcast to the shape; where there is a reference.
  """
  normal = config.mean + config.std * jax.random.normal(key, shape)
  return shifted(jax.nn.sigmoid(normal), size_shift(config, tokens))


def frame_loss(v_Bfhwc, target_Bfhwc) -> jax.Array:
  """Mean squared error of each latent frame, float32 (B, f)."""
  error = v_Bfhwc.astype(jnp.float32) - target_Bfhwc.astype(jnp.float32)
  return jnp.mean(jnp.square(error), axis=(2, 3, 4))


def masked_mean(loss_Bf, given_Bf) -> jax.Array:
  """The mean over the latent frames that are not given; a float32 scalar."""
  weight_Bf = 1.0 - given_Bf.astype(jnp.float32)
  return jnp.sum(loss_Bf * weight_Bf) / jnp.maximum(jnp.sum(weight_Bf), 1.0)
