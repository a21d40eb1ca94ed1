"""The interface that every video autoencoder implements."""

from typing import Protocol

import jax
import numpy as np

from spacetime.models.autoencoder.layers import Cache


class Autoencoder(Protocol):
  """Video <-> latents of unit scale; methods are pure.

  A video_BFHWC is float32 in [-1, 1] with 1 + k * stride[0] frames, its latents
  z_Bfhwc have 1 + k frames. A cache is a pytree of fixed shape, whatever the
  length of the video.
  """

  @property
  def stride(self) -> tuple[int, int, int]:
    """Pixels per latent cell along time, height and width."""

  @property
  def z_dim(self) -> int:
    """Latent channels."""

  @property
  def latents_mean(self) -> tuple[float, ...]:
    """Mean that is subtracted from each latent channel; () is 0."""

  @property
  def latents_std(self) -> tuple[float, ...]:
    """Standard deviation that each latent channel is divided by; () is 1."""

  def init(self, key: jax.Array) -> dict:
    """Returns fresh parameters."""

  def encode(self, params: dict, video_BFHWC: jax.Array) -> jax.Array:
    """Returns z_Bfhwc of a complete clip."""

  def encode_first(
    self, params: dict, video_BFHWC: jax.Array
  ) -> tuple[Cache, jax.Array]:
    """Encodes an opening chunk: (cache, z_Bfhwc)."""

  def encode_step(
    self, params: dict, cache: Cache, video_BFHWC: jax.Array
  ) -> tuple[Cache, jax.Array]:
    """Encodes the next k * stride[0] frames: (cache, z_Bfhwc)."""

  def decode(self, params: dict, z_Bfhwc: jax.Array) -> jax.Array:
    """Returns the video_BFHWC of a complete clip, clipped to [-1, 1]."""

  def decode_unclipped(self, params: dict, z_Bfhwc: jax.Array) -> jax.Array:
    """Decodes without clipping, for training."""

  def decode_first(
    self, params: dict, z_Bfhwc: jax.Array
  ) -> tuple[Cache, jax.Array]:
    """Decodes the first latent frames: (cache, video_BFHWC)."""

  def decode_step(
    self, params: dict, cache: Cache, z_Bfhwc: jax.Array
  ) -> tuple[Cache, jax.Array]:
    """Decodes the next latent frames: (cache, video_BFHWC)."""

  def latent_cond_mask(self, mask_FHW: np.ndarray) -> np.ndarray:
    """Maps a mask of pixels to mask_fhwc of the latent values that depend on
    nothing else."""
