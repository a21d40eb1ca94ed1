"""Autoencoder training: reconstruction loss, PSNR and latent statistics."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from spacetime.config.sections import ReconstructionConfig
from spacetime.media.pixels import psnr, to_video
from spacetime.training import means


def coarser(video_BFHWC: jax.Array) -> jax.Array:
  """Halves height and width by averaging two by two pixels."""
  x = video_BFHWC
  x = 0.5 * (x[:, :, 0::2] + x[:, :, 1::2])
  return 0.5 * (x[:, :, :, 0::2] + x[:, :, :, 1::2])


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """The reconstruction loss of an autoencoder, given as functions.

  Attributes:
    posterior: (params, video_BFHWC) -> (mean_Bfhwc, logvar_Bfhwc), raw scale.
    decode_raw: (params, z_Bfhwc of raw scale) -> video_BFHWC, not clipped.
    config: weights of the terms of the loss.
  """

  posterior: Callable
  decode_raw: Callable
  config: ReconstructionConfig

  def draw(self, params, frozen, batch, key):
    """What is random in the loss of a batch: noise (B, f, h, w, c)."""
    del frozen
    frames = batch['frames']
    mean, _ = jax.eval_shape(
      lambda params, frames: self.posterior(params, to_video(frames)),
      params,
      frames,
    )
    return {'noise': jax.random.normal(key, mean.shape)}

  def loss(self, params, frozen, batch, key, draws=None):
    """The training loss of a batch {'frames': uint8}, a mean over clips.

    Args:
      params: {'autoencoder': parameters}.
      frozen: unused.
      batch: clips of one size.
      key: of this step.
      draws: see `draw`; None draws from the key.
    """
    if draws is None:
      draws = self.draw(params, frozen, batch, key)
    config = self.config
    video = to_video(batch['frames'])
    mean, logvar = self.posterior(params, video)
    noise = draws['noise']
    decoded = self.decode_raw(params, mean + jnp.exp(0.5 * logvar) * noise)
    kl = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
    error = decoded - video
    squared = jnp.mean(jnp.square(error))
    absolute = jnp.mean(jnp.abs(error))
    for axis in (2, 3):
      slope = jnp.mean(jnp.abs(jnp.diff(error, axis=axis)))
      absolute += config.gradient * slope
    for _ in range(config.scales):
      error = coarser(error)
      absolute += jnp.mean(jnp.abs(error))
    loss = (
      config.squared * squared + config.absolute * absolute + config.kl * kl
    )
    metrics = {'loss': loss, 'kl': kl, 'psnr': jnp.mean(psnr(video, decoded))}
    clips = len(video)
    return loss, {k: means.Mean(v, clips) for k, v in metrics.items()}

  def held_out(self, params, frozen, batch):
    """PSNR of the posterior's mean, in dB."""
    del frozen
    video = to_video(batch['frames'])
    mean, _ = self.posterior(params, video)
    decoded = jnp.clip(self.decode_raw(params, mean), -1.0, 1.0)
    psnr_B = psnr(video, decoded)
    return {'held_out/psnr': means.over_clips(psnr_B, batch.get('counted'))}

  def moments(self, params, batch):
    """First and second moment of each latent channel, float32 (c,) each, and
    the number of latent cells that they are means of."""
    mean, _ = self.posterior(params, to_video(batch['frames']))
    axes = (0, 1, 2, 3)
    cells = mean.size // mean.shape[-1]
    return jnp.mean(mean, axes), jnp.mean(jnp.square(mean), axes), cells
