"""Pixels as latents: the causal fold of time, without parameters."""

import dataclasses

import einops
import jax
import jax.numpy as jnp
import numpy as np

from spacetime.models.autoencoder import streaming


@dataclasses.dataclass(frozen=True)
class IdentityAutoencoder:
  """Folds 1 + k * time frames of video into 1 + k latent frames.

  The interface of `Autoencoder`; params are {}. Latent frame 0 holds frame 0
  `time` times, each later one `time` frames, on channels ordered (frame, RGB).
  Latents are pixels, in [-1, 1]; decoding inverts encoding exactly.

  Attributes:
    time: pixel frames in a latent frame.
  """

  time: int = 4

  def __post_init__(self):
    if self.time < 1:
      raise ValueError(
        f'time={self.time}: expected a positive integer; change '
        'autoencoder.time'
      )

  @property
  def stride(self) -> tuple[int, int, int]:
    """Pixels per latent cell in time, height and width."""
    return self.time, 1, 1

  @property
  def z_dim(self) -> int:
    """Channels of the latents."""
    return 3 * self.time

  def init(self, key) -> dict[str, jax.Array]:
    """No parameters."""
    del key
    return {}

  def encode(self, params, video_BFHWC):
    """Latents z_Bfhwc of a whole clip."""
    return self.encode_first(params, video_BFHWC)[1]

  def encode_first(self, params, video_BFHWC):
    """Latents of an opening chunk of 1 + k * time frames: (cache, z)."""
    streaming.check_frames(video_BFHWC.shape, self.stride, opens=True)
    return {}, self.fold(video_BFHWC)

  def encode_step(self, params, cache, video_BFHWC):
    """Latents of the next k * time frames: (cache, z_Bfhwc)."""
    streaming.check_frames(video_BFHWC.shape, self.stride, opens=False)
    return {}, self._fold(video_BFHWC)

  def fold(self, video_BFHWC, xp=jnp):
    """Latents of a whole clip, of the dtype that it has.

    Args:
      video_BFHWC: pixels, as numbers or bytes.
      xp: `numpy` on the host, or `jax.numpy`.
    """
    copies = xp.repeat(video_BFHWC[:, :1], self.time - 1, axis=1)
    return self._fold(xp.concatenate([copies, video_BFHWC], axis=1))

  def decode(self, params, z_Bfhwc):
    """The video_BFHWC of whole latents, clipped to [-1, 1]."""
    return jnp.clip(self.decode_unclipped(params, z_Bfhwc), -1, 1)

  def decode_unclipped(self, params, z_Bfhwc):
    """As `decode` without the clip, for training."""
    video_BFHWC = self._unfold(z_Bfhwc)
    copies, rest = video_BFHWC[:, : self.time], video_BFHWC[:, self.time :]
    # The mean round one of the copies, so that equal copies give it exactly.
    first = copies[:, :1]
    first += jnp.mean(copies - first, axis=1, keepdims=True)
    return jnp.concatenate([first, rest], axis=1)

  def decode_first(self, params, z_Bfhwc):
    """The video of the first latent frames: (cache, video_BFHWC)."""
    return {}, self.decode(params, z_Bfhwc)

  def decode_step(self, params, cache, z_Bfhwc):
    """The video of the next latent frames: (cache, video_BFHWC)."""
    return {}, jnp.clip(self._unfold(z_Bfhwc), -1, 1)

  def latent_cond_mask(self, cond_mask_FHW: np.ndarray) -> np.ndarray:
    """Which values of the latents a mask of pixels makes known, (f, h, w, c):
    each by itself."""
    copies = np.repeat(cond_mask_FHW[:1], self.time - 1, axis=0)
    cond_mask_FHW = np.concatenate([copies, cond_mask_FHW])
    known_fHWt = einops.rearrange(
      cond_mask_FHW, '(f t) H W -> f H W t', t=self.time
    )
    return np.repeat(known_fHWt, 3, axis=-1)

  def normalise(self, mean_Bfhwc):
    """Pixels have unit scale as they are."""
    return mean_Bfhwc

  def denormalise(self, z_Bfhwc):
    """Pixels have unit scale as they are."""
    return z_Bfhwc

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
