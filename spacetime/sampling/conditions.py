"""What is given: from a request to latents and a mask, nothing more.

Every mode of sampling is one of these functions; the sampler sees only which
latent frames are given (they stay as they are, at level 0) and which are
noise.
"""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condition:
  """Given latents.

  Attributes:
    z_Bfhwc: float32; what is not given is not read.
    given_Bf: bool, which latent frames are given; None where none is, so that
      the network is told one level for the whole clip.
  """

  z_Bfhwc: jax.Array
  given_Bf: jax.Array | None = None


def nothing(batch: int, latent: tuple[int, int, int, int]) -> Condition:
  """Text to video: all is noise. `latent` is (f, h, w, c)."""
  return Condition(jnp.zeros((batch, *latent), jnp.float32))


def first_image(
  z_B1hwc: jax.Array, latent: tuple[int, int, int, int]
) -> Condition:
  """Image to video: the first frame is given.

  Args:
    z_B1hwc: the image's latents; a causal autoencoder encodes a first frame
      alone, so these are the very latents of a video that begins with it.
    latent: (f, h, w, c) of the video.
  """
  batch = z_B1hwc.shape[0]
  return Condition(
    jnp.zeros((batch, *latent), jnp.float32).at[:, :1].set(z_B1hwc),
    jnp.zeros((batch, latent[0]), bool).at[:, 0].set(True),
  )
