"""The loss of a flow map: a network that is sampled in any number of steps.

The network u(x_t, t, r) learns the mean velocity of the path from t to r of a
guided teacher, which it replaces: guidance becomes part of its weights.

  d x / d t = v = noise - z,     u(x_t, t, r) = v - (t - r) d u / d t

The derivative along the path is a central difference of the network itself,
without gradient. Rows with r = t learn the guided velocity; the others are
weighted by their own error, so that all rows count as much.

With `flow_map.teacher`='model' v is the teacher's guided prediction itself, and
the network has no guidance to take out.

Source: Gu et al. 2026 (AnyFlow), arXiv 2605.13724, stage 1; the identity is
that of Geng et al. 2025 (MeanFlow), arXiv 2505.13447, equation 6; the velocity
of a teacher in it: Sabour et al. 2025, arXiv 2506.14603, section 3.2.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from spacetime.config.sections import FlowMapConfig
from spacetime.diffusion import flow
from spacetime.training import frame_conditioning, losses, means

# Mean of t sqrt(1 - t) over [0, 1].
MEAN_WEIGHT = 4 / 15
# Root of the teacher's parameters, among the frozen ones.
TEACHER = 'teacher'
# Errors are divided by their own size and at least this.
MIN_ERROR = 1e-5


@dataclasses.dataclass(frozen=True)
class FlowMapLoss:
  """The loss of a batch of clips of one size.

  Attributes:
    clips: the loss of clips, for its inputs, flow, conditioning frames and
      transformer.
    config: guidance, and shares of rows.
    negative: (params, rows) -> embeddings of the empty prompt, text_BSY.
  """

  clips: losses.DiffusionLoss
  config: FlowMapConfig
  negative: Callable

  def draw(self, params, frozen, batch, key):
    """What is random in the loss of a batch but for dropout.

    Args:
      params, frozen, batch, key: see DiffusionLoss.draw.

    Returns:
      t and r (B, f) or (B, 1), where the steps start and end; cond_mask bool
      (B, f), conditioning frames, which do not move; velocity_rows bool (B,),
      rows with r = t; noise (B, f, h, w, c).
    """
    clips = self.clips
    latents = jax.eval_shape(clips.latents, frozen | params, frozen, batch)
    rows, frames = latents.shape[:2]
    time_key, mask_key, frame_key, noise_key = jax.random.split(key, 4)
    cond_mask_Bf = clips.cond_mask(mask_key, rows, frames, batch)
    t_B1, r_B1 = self.times(
      time_key,
      rows,
      tokens=clips.tokens(latents),
      factor=batch['shift'][:, None] if 'shift' in batch else 1.0,
    )
    t, r = t_B1, r_B1
    if not clips.conditioning.has_one_timestep:
      t = frame_conditioning.frame_timesteps(
        frame_key,
        t_B1,
        jnp.broadcast_to(t_B1, (rows, frames)),
        cond_mask_Bf,
        clips.conditioning,
      )
      r = jnp.where(cond_mask_Bf, t, r_B1)
    return {
      't': t,
      'r': r,
      'cond_mask': cond_mask_Bf,
      'velocity_rows': jnp.arange(rows) < velocity_rows(rows, self.config),
      'noise': jax.random.normal(noise_key, latents.shape),
    }

  def times(
    self, key: jax.Array, rows: int, *, tokens: int, factor=1.0
  ) -> tuple[jax.Array, jax.Array]:
    """Starts t and ends r of the steps of a batch, (B, 1) each.

    The first rows have r = t, the next r = 0: the shares are exact, so that
    they vary less from batch to batch than chances would.

    Args:
      key: random key.
      rows: B.
      tokens: tokens of a clip; the shift may depend on them.
      factor: of the shift of each clip.
    """
    u_2B1 = jax.random.uniform(key, (2, rows, 1))
    t_B1, r_B1 = jnp.max(u_2B1, axis=0), jnp.min(u_2B1, axis=0)
    index_B1 = jnp.arange(rows)[:, None]
    velocity = velocity_rows(rows, self.config)
    end = velocity + round(rows * self.config.to_data)
    r_B1 = jnp.where(index_B1 < end, 0.0, r_B1)
    r_B1 = jnp.where(index_B1 < velocity, t_B1, r_B1)
    shift = factor * flow.size_shift(self.clips.flow, tokens)
    return flow.shifted(t_B1, shift), flow.shifted(r_B1, shift)

  def loss(self, params, frozen, batch, key, draws=None):
    """The training loss of a batch; see DiffusionLoss.loss.

    With a batch in parts, the rows with r < t are weighted by the error of the
    rows with r = t of their own part.

    Returns:
      (loss, metrics), each a Mean; the metric `loss_velocity` is that of the
      rows with r = t.
    """
    if draws is None:
      draws = self.draw(params, frozen, batch, key)
    params = frozen | params
    z_Bfhwc, text = self.clips.inputs(params, frozen, batch)
    moves_Bf = 1.0 - draws['cond_mask'].astype(jnp.float32)
    v = self.velocity(params, batch, z_Bfhwc, draws)
    error = self.prediction(
      params, z_Bfhwc, text, draws, losses.dropout_key(key, 4)
    ) - self.target(params, z_Bfhwc, text, draws, v)
    loss_Bf = flow.frame_loss(error, jnp.zeros_like(v))
    moving_B = jnp.maximum(jnp.sum(moves_Bf, axis=1), 1.0)
    loss_B = jnp.sum(loss_Bf * moves_Bf, axis=1) / moving_B
    # Conditioning frames have less noise than the clip: t is the largest.
    t_B = jnp.max(draws['t'], axis=1)
    loss_B *= t_B * jnp.sqrt(jnp.maximum(1 - t_B, 0)) / MEAN_WEIGHT
    is_velocity_B = draws['velocity_rows'].astype(jnp.float32)
    count = jnp.sum(is_velocity_B)
    reference = jnp.sum(loss_B * is_velocity_B) / means.divisor(count)
    factor_B = jax.lax.stop_gradient(reference / (loss_B + MIN_ERROR))
    loss_B *= jnp.where(draws['velocity_rows'], 1.0, factor_B)
    loss = means.Mean(jnp.mean(loss_B), len(loss_B))
    return loss.value, {
      'loss': loss,
      'loss_velocity': means.Mean(reference, count),
    }

  @property
  def scale(self) -> float:
    """Guidance that the prediction of the network has and v has not."""
    return 1.0 if self.config.teacher == 'model' else self.config.guidance

  def velocity(self, params, batch, z_Bfhwc, draws):
    """v at t, without gradient: of the clips, or as the teacher predicts it.

    Args:
      params: parameters of all networks.
      batch: see DiffusionLoss.loss.
      z_Bfhwc: its latents.
      draws: see `draw`.
    """
    if self.config.teacher == 'clips':
      return flow.velocity(z_Bfhwc, draws['noise'])
    # The transformer below LoRA weights is the teacher as it is.
    teacher = params.get(TEACHER) or {
      k: params[k] for k in params.keys() - {'lora'}
    }
    text = (
      batch['text']
      if 'text' in batch
      else self.clips.embed(teacher, batch['tokens'])
    )
    x_t = flow.add_noise(z_Bfhwc, draws['noise'], draws['t'])

    def predict(text):
      return self.clips.velocity(
        teacher, x_t, draws['t'], text, end_BT=draws['t']
      )

    v, scale = predict(text), self.config.guidance
    if scale != 1:
      unguided = predict(self.negative(teacher, len(z_Bfhwc)))
      v = unguided + scale * (v - unguided)
    return jax.lax.stop_gradient(v)

  def prediction(self, params, z_Bfhwc, text, draws, dropout=None):
    """The mean velocity (B, f, h, w, c) from t to r, with the guidance that the
    network has learned taken out of it.

    Only the network's own prediction has a gradient.

    Args:
      params: parameters of all networks.
      z_Bfhwc: latents.
      text: prompt embeddings.
      draws: see `draw`.
      dropout: key of the dropout of LoRA weights.
    """
    x_t = flow.add_noise(z_Bfhwc, draws['noise'], draws['t'])
    at = dict(end_BT=draws['r'])
    mean = self.clips.velocity(params, x_t, draws['t'], text, dropout, **at)
    scale = self.scale
    if scale == 1:
      return mean
    negative = self.negative(params, len(z_Bfhwc))
    unguided = self.clips.velocity(
      jax.lax.stop_gradient(params), x_t, draws['t'], negative, **at
    )
    return (mean - (1 - scale) * jax.lax.stop_gradient(unguided)) / scale

  def target(self, params, z_Bfhwc, text, draws, v):
    """v - (t - r) d u / d t, without gradient: (B, f, h, w, c).

    The derivative is the central difference of the network along v; what stands
    still has none.

    Args:
      params, z_Bfhwc, text, draws: see `prediction`.
      v: see `velocity`.
    """
    t, r = draws['t'], draws['r']
    moves = 1.0 - draws['cond_mask'].astype(jnp.float32)
    if t.shape[1] == 1:  # no conditioning frames
      moves = jnp.ones_like(t)
    x_t = flow.add_noise(z_Bfhwc, draws['noise'], t)
    params = jax.lax.stop_gradient(params)

    def at(step):
      x = x_t + step * flow.per_frame(moves) * v
      return self.clips.velocity(params, x, t + step * moves, text, end_BT=r)

    delta = self.config.delta
    slope = (at(delta) - at(-delta)) / (2 * delta * self.scale)
    return jax.lax.stop_gradient(v - flow.per_frame(t - r) * slope)


def velocity_rows(rows: int, config: FlowMapConfig) -> int:
  """Rows of a batch with r = t, at least one."""
  return max(1, round(rows * config.velocity))
