"""The transformer's stage: loss, and the held-out loss on a fixed grid."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from spacetime.config.sections import FrameConditioningConfig
from spacetime.diffusion import flow
from spacetime.media.pixels import to_video
from spacetime.training import frame_conditioning

# Held-out loss is told at these levels, from little noise to much.
HELD_OUT_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.97)


@dataclasses.dataclass(frozen=True)
class Diffusion:
  """What this stage needs of the networks, as functions.

  Attributes:
    encode: (frozen, video_BFHWC) -> z_Bfhwc, unit scale.
    embed: (params, tokens_BS) -> text_BSY.
    transform: (params, z_Bfhwc, t_BT, text_BSY, key) -> prediction_Bfhwc; the
      key is for dropout, None drops nothing.
    flow: prediction and levels.
    conditioning: which frames are given.
    patch: latent cells of a token, on which the levels of a size hang.
  """

  encode: Callable
  embed: Callable
  transform: Callable
  flow: flow.FlowConfig
  conditioning: FrameConditioningConfig
  patch: tuple[int, int, int] = (1, 1, 1)

  def inputs(self, params, frozen, batch):
    """(z_Bfhwc, text_BSY), computed where the batch does not bring them."""
    if 'latents' in batch:
      z_Bfhwc = batch['latents'].astype(jnp.float32)
    else:
      z_Bfhwc = self.encode(frozen, to_video(batch['frames']))
    if 'text' in batch:
      return z_Bfhwc, batch['text']
    return z_Bfhwc, self.embed(params, batch['tokens'])

  def velocity(self, params, z_t_Bfhwc, t_Bf, text_BSY, key=None):
    """The predicted velocity, whatever the network predicts."""
    y_Bfhwc = self.transform(params, z_t_Bfhwc, t_Bf, text_BSY, key)
    if self.flow.prediction == 'velocity':
      return y_Bfhwc
    return flow.to_velocity(z_t_Bfhwc, y_Bfhwc, t_Bf, floor=self.flow.floor)

  def losses(self, params, z_Bfhwc, text_BSY, t_Bf, key, dropout=None):
    """Squared error of the velocity for each latent frame, (B, f)."""
    noise = jax.random.normal(key, z_Bfhwc.shape)
    z_t = flow.add_noise(z_Bfhwc, noise, t_Bf)
    v = self.velocity(params, z_t, t_Bf, text_BSY, dropout)
    return flow.frame_loss(v, flow.velocity(z_Bfhwc, noise))

  def loss(self, params, frozen, batch, key):
    """The training loss of a batch.

    Args:
      params: those that are trained.
      frozen: the others.
      batch: 'frames' (uint8) or 'latents', and 'tokens' (int32) or 'text'.
      key: of this step.
    """
    whole = frozen | params
    z_Bfhwc, text_BSY = self.inputs(whole, frozen, batch)
    level_key, own_key, given_key, table_key, noise_key = jax.random.split(
      key, 5
    )
    rows, frames = z_Bfhwc.shape[:2]
    tokens = math.prod(z_Bfhwc.shape[1:4]) // math.prod(self.patch)
    t_B1, own_Bf = (
      flow.sample_timesteps(key, shape, self.flow, tokens=tokens)
      for key, shape in ((level_key, (rows, 1)), (own_key, (rows, frames)))
    )
    given_Bf = frame_conditioning.sample_cond_mask(
      given_key, rows, frames, self.conditioning
    )
    t_Bf = frame_conditioning.sample_levels(
      table_key, t_B1, own_Bf, given_Bf, self.conditioning
    )
    dropout_key = jax.random.fold_in(noise_key, 1)
    loss_Bf = self.losses(
      whole, z_Bfhwc, text_BSY, t_Bf, noise_key, dropout_key
    )
    loss = flow.masked_mean(loss_Bf, given_Bf)
    return loss, {'loss': loss}

  def held_out(self, params, frozen, batch):
    """The loss at each of HELD_OUT_LEVELS with noise that never changes."""
    whole = frozen | params
    z_Bfhwc, text_BSY = self.inputs(whole, frozen, batch)

    def at(level):
      t_Bf = jnp.full(z_Bfhwc.shape[:2], level)
      key = jax.random.key(0)
      return jnp.mean(self.losses(whole, z_Bfhwc, text_BSY, t_Bf, key))

    losses = jax.lax.map(at, jnp.asarray(HELD_OUT_LEVELS))
    told = {
      f'held_out/loss_t{level}': losses[i]
      for i, level in enumerate(HELD_OUT_LEVELS)
    }
    return dict(told, **{'held_out/loss': jnp.mean(losses)})
