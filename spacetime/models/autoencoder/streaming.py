"""Long videos: encode and decode chunk by chunk, with a cache of fixed shape.

For any codec with the interface of `Autoencoder`.
"""

import einops
import jax
import jax.numpy as jnp


def check_frames(shape, stride, *, opens: bool):
  """Raises ValueError for a chunk of video that the stride does not divide."""
  if len(shape) != 5 or shape[-1] != 3:
    raise ValueError(f'video of shape {shape}: expected (B, F, H, W, 3)')
  time, height, width = stride
  frames = shape[1] - 1 if opens else shape[1]
  if frames < 0 or frames % time:
    raise ValueError(
      f'a chunk of {shape[1]} frames: expected {time}k{"+1" if opens else ""}; '
      'change data.world.frames'
    )
  if not opens and not frames:
    raise ValueError(f'a chunk of 0 frames: expected {time}k; k at least 1')
  if shape[2] % height or shape[3] % width:
    raise ValueError(
      f'video of {shape[2]} x {shape[3]} pixels: expected multiples of '
      f'{height} x {width}; change data.world.height and data.world.width'
    )


def encode_chunks(autoencoder, params, video_BFHWC, *, first=None, step=None):
  """Yields latents of chunks of 1, stride, stride, ... frames.

  Args:
    autoencoder: an `Autoencoder` or `IdentityAutoencoder`.
    params: its parameters.
    video_BFHWC: a whole clip; host memory will do.
    first: `encode_first`, jitted; None runs it as it is.
    step: `encode_step`, likewise.
  """
  time = autoencoder.stride[0]
  check_frames(video_BFHWC.shape, autoencoder.stride, opens=True)
  first = first or autoencoder.encode_first
  step = step or autoencoder.encode_step
  cache, z_Bfhwc = first(params, video_BFHWC[:, :1])
  yield z_Bfhwc
  for start in range(1, video_BFHWC.shape[1], time):
    chunk = video_BFHWC[:, start : start + time]
    cache, z_Bfhwc = step(params, cache, chunk)
    yield z_Bfhwc


class Stream:
  """Decodes one latent frame after another, however many there will be.

  Attributes:
    cache: a pytree of fixed shape; None before the first latent frame. It is
      given away to `step`.

  Args:
    autoencoder: an `Autoencoder` or `IdentityAutoencoder`.
    params: its parameters.
    first: `decode_first`, jitted; None runs it as it is.
    step: `decode_step`, likewise.
    cache: of a stream that goes on.
  """

  def __init__(self, autoencoder, params, *, first=None, step=None, cache=None):
    self._params = params
    self._first = first or autoencoder.decode_first
    self._step = step or autoencoder.decode_step
    self.cache = cache

  def __call__(self, z_B1hwc):
    """The video of the next latent frame."""
    if self.cache is None:
      self.cache, video_BFHWC = self._first(self._params, z_B1hwc)
    else:
      self.cache, video_BFHWC = self._step(self._params, self.cache, z_B1hwc)
    return video_BFHWC


def decode_chunks(autoencoder, params, z_Bfhwc, *, first=None, step=None):
  """Yields the video of one latent frame after the other.

  Chunks of 1, stride, stride, ... frames, in memory constant in duration.

  Args:
    autoencoder: an `Autoencoder` or `IdentityAutoencoder`.
    params: its parameters.
    z_Bfhwc: latents; host memory will do.
    first: `decode_first`, jitted; None runs it as it is.
    step: `decode_step`, likewise.
  """
  stream = Stream(autoencoder, params, first=first, step=step)
  for i in range(z_Bfhwc.shape[1]):
    yield stream(z_Bfhwc[:, i : i + 1])


def decode_scan(autoencoder, params, z_Bfhwc):
  """As `decode`, one latent frame at a time under `lax.scan`.

  The temporaries do not grow with the length; the video itself does.
  """
  cache, first = autoencoder.decode_first(params, z_Bfhwc[:, :1])
  if z_Bfhwc.shape[1] == 1:
    return first

  def body(cache, z_Bhwc):
    return autoencoder.decode_step(params, cache, z_Bhwc[:, None])

  z_fBhwc = einops.rearrange(z_Bfhwc[:, 1:], 'B f h w c -> f B h w c')
  _, rest = jax.lax.scan(body, cache, z_fBhwc)
  rest = einops.rearrange(rest, 'f B t H W C -> B (f t) H W C')
  return jnp.concatenate([first, rest], axis=1)
