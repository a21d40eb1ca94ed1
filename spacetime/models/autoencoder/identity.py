"""Identity autoencoder: pixels as latents, with time folded into channels."""

import dataclasses

import einops
import jax
import jax.numpy as jnp
import numpy as np

from spacetime import SettingError
from spacetime.models.autoencoder import streaming
from spacetime.models.autoencoder.layers import Cache


@dataclasses.dataclass(frozen=True)
class IdentityAutoencoder:
  """Folds 1 + k * time frames of video into 1 + k latent frames.

  Implements interface.Autoencoder; params are {}. Latent frame 0 holds frame 0
  `time` times, each later one `time` frames, on channels ordered (frame, RGB).
  Latents are pixels in [-1, 1]; decoding inverts encoding exactly.

  Attributes:
    time: video frames per latent frame.
  """

  time: int = 4

  def __post_init__(self):
    if self.time < 1:
      raise SettingError('autoencoder.time', self.time, 'a positive integer')

  @property
  def stride(self) -> tuple[int, int, int]:
    """Pixels per latent cell along time, height and width."""
    return self.time, 1, 1

  @property
  def z_dim(self) -> int:
    """Latent channels."""
    return 3 * self.time

  @property
  def latents_mean(self) -> tuple[float, ...]:
    """Latents are pixels: ()."""
    return ()

  @property
  def latents_std(self) -> tuple[float, ...]:
    """Latents are pixels: ()."""
    return ()

  def init(self, key: jax.Array) -> dict:
    """Returns no parameters."""
    del key
    return {}

  def encode(self, params: dict, video_BFHWC: jax.Array) -> jax.Array:
    """Returns z_Bfhwc of a complete clip."""
    return self.encode_first(params, video_BFHWC)[1]

  def encode_first(
    self, params: dict, video_BFHWC: jax.Array
  ) -> tuple[Cache, jax.Array]:
    """Encodes an opening chunk of 1 + k * time frames: (cache, z_Bfhwc)."""
    streaming.check_frames(video_BFHWC.shape, self.stride, opens=True)
    return {}, self.fold(video_BFHWC)

  def encode_step(
    self, params: dict, cache: Cache, video_BFHWC: jax.Array
  ) -> tuple[Cache, jax.Array]:
    """Encodes the next k * time frames: (cache, z_Bfhwc)."""
    streaming.check_frames(video_BFHWC.shape, self.stride, opens=False)
    return {}, self._fold(video_BFHWC)

  def fold(self, video_BFHWC, xp=jnp):
    """Returns z_Bfhwc of a complete clip, in the dtype of the clip.

    Args:
      video_BFHWC: pixels, float or uint8.
      xp: `numpy` on the host, or `jax.numpy`.
    """
    copies = xp.repeat(video_BFHWC[:, :1], self.time - 1, axis=1)
    return self._fold(xp.concatenate([copies, video_BFHWC], axis=1))

  def decode(self, params: dict, z_Bfhwc: jax.Array) -> jax.Array:
    """Returns the video_BFHWC of a complete clip, clipped to [-1, 1]."""
    return jnp.clip(self.decode_unclipped(params, z_Bfhwc), -1, 1)

  def decode_unclipped(self, params: dict, z_Bfhwc: jax.Array) -> jax.Array:
    """Decodes without clipping, for training."""
    video_BFHWC = self._unfold(z_Bfhwc)
    copies, rest = video_BFHWC[:, : self.time], video_BFHWC[:, self.time :]
    # The mean relative to one copy, so that equal copies return it exactly.
    first = copies[:, :1]
    first += jnp.mean(copies - first, axis=1, keepdims=True)
    return jnp.concatenate([first, rest], axis=1)

  def decode_first(
    self, params: dict, z_Bfhwc: jax.Array
  ) -> tuple[Cache, jax.Array]:
    """Decodes the first latent frames: (cache, video_BFHWC)."""
    return {}, self.decode(params, z_Bfhwc)

  def decode_step(
    self, params: dict, cache: Cache, z_Bfhwc: jax.Array
  ) -> tuple[Cache, jax.Array]:
    """Decodes the next latent frames: (cache, video_BFHWC)."""
    return {}, jnp.clip(self._unfold(z_Bfhwc), -1, 1)

  def latent_cond_mask(self, mask_FHW: np.ndarray) -> np.ndarray:
    """Maps a mask of pixels to mask_fhwc of latent values, one by one."""
    copies = np.repeat(mask_FHW[:1], self.time - 1, axis=0)
    mask_FHW = np.concatenate([copies, mask_FHW])
    mask_fHWt = einops.rearrange(mask_FHW, '(f t) H W -> f H W t', t=self.time)
    return np.repeat(mask_fHWt, 3, axis=-1)

  def _fold(self, video_BFHWC):
    return einops.rearrange(
      video_BFHWC, 'B (f t) H W C -> B f H W (t C)', t=self.time
    )

  def _unfold(self, z_Bfhwc):
    if z_Bfhwc.ndim != 5 or z_Bfhwc.shape[-1] != self.z_dim:
      raise ValueError(
        f'latents of shape {z_Bfhwc.shape}: expected (B, f, h, w, '
        f'{self.z_dim}); change autoencoder.time={self.time}'
      )
    return einops.rearrange(
      z_Bfhwc, 'B f H W (t C) -> B (f t) H W C', t=self.time
    )
