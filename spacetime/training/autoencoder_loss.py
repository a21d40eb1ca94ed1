"""Autoencoder training: reconstruction loss, PSNR and latent statistics."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from spacetime.config.sections import ReconstructionConfig
from spacetime.media.pixels import psnr, to_video


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

  def loss(self, params, frozen, batch, key):
    """Returns the training loss of a batch {'frames': uint8}."""
    del frozen
    config = self.config
    video = to_video(batch['frames'])
    mean, logvar = self.posterior(params, video)
    noise = jax.random.normal(key, mean.shape)
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
    return loss, metrics

  def held_out(self, params, frozen, batch):
    """PSNR of the posterior's mean, in dB."""
    del frozen
    video = to_video(batch['frames'])
    mean, _ = self.posterior(params, video)
    decoded = jnp.clip(self.decode_raw(params, mean), -1.0, 1.0)
    return {'held_out/psnr': jnp.mean(psnr(video, decoded))}

  def moments(self, params, batch):
    """First and second moment of each latent channel, float32 (c,) each."""
    mean, _ = self.posterior(params, to_video(batch['frames']))
    axes = (0, 1, 2, 3)
    return jnp.mean(mean, axes), jnp.mean(jnp.square(mean), axes)
