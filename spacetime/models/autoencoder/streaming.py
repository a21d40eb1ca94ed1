"""Encoding and decoding chunk by chunk, with a cache of fixed shape."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from spacetime.models.autoencoder.interface import Autoencoder
from spacetime.models.autoencoder.layers import Cache


def check_frames(
  shape: tuple[int, ...], stride: tuple[int, int, int], *, opens: bool
) -> None:
  """Checks the shape of a chunk of video.

  Raises:
    ValueError: a chunk that the autoencoder's stride does not divide.
  """
  if len(shape) != 5 or shape[-1] != 3:
    raise ValueError(f'video of shape {shape}: expected (B, F, H, W, 3)')
  time, height, width = stride
  frames = shape[1] - 1 if opens else shape[1]
  if frames < 0 or frames % time:
    raise ValueError(
      f'a chunk of {shape[1]} frames: expected {time}k{"+1" if opens else ""}; '
      'change data.frames'
    )
  if not opens and not frames:
    raise ValueError(f'a chunk of 0 frames: expected {time}k; k at least 1')
  if shape[2] % height or shape[3] % width:
    raise ValueError(
      f'video of {shape[2]} x {shape[3]} pixels: expected multiples of '
      f'{height} x {width}; change data.height and data.width'
    )


def encode_chunks(
  autoencoder: Autoencoder,
  params: dict,
  video_BFHWC: np.ndarray | jax.Array,
  *,
  first: Callable | None = None,
  step: Callable | None = None,
) -> Iterator[jax.Array]:
  """Yields the latents of chunks of 1, stride, stride, ... frames.

  Args:
    autoencoder: the autoencoder.
    params: parameters of the autoencoder.
    video_BFHWC: a complete clip; may be in host memory.
    first: a jitted `encode_first`; None calls the method itself.
    step: a jitted `encode_step`; None calls the method itself.
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
  """Decodes a stream of latent frames of any length, one frame per call.

  Attributes:
    cache: state of the stream, of fixed shape; None before the first latent
      frame. `step` may donate it.

  Args:
    autoencoder: the autoencoder.
    params: parameters of the autoencoder.
    first: a jitted `decode_first`; None calls the method itself.
    step: a jitted `decode_step`; None calls the method itself.
    cache: state of a stream to continue.
  """

  def __init__(
    self,
    autoencoder: Autoencoder,
    params: dict,
    *,
    first: Callable | None = None,
    step: Callable | None = None,
    cache: Cache = None,
  ):
    self._params = params
    self._first = first or autoencoder.decode_first
    self._step = step or autoencoder.decode_step
    self.cache = cache

  def __call__(self, z_B1hwc: jax.Array) -> jax.Array:
    """Returns the video_BFHWC of the next latent frame."""
    if self.cache is None:
      self.cache, video_BFHWC = self._first(self._params, z_B1hwc)
    else:
      self.cache, video_BFHWC = self._step(self._params, self.cache, z_B1hwc)
    return video_BFHWC


def decode_chunks(
  autoencoder: Autoencoder,
  params: dict,
  z_Bfhwc: np.ndarray | jax.Array,
  *,
  first: Callable | None = None,
  step: Callable | None = None,
) -> Iterator[jax.Array]:
  """Yields the video of one latent frame after another.

  The chunks have 1, stride, stride, ... frames; memory does not depend on the
  duration.

  Args:
    autoencoder: the autoencoder.
    params: parameters of the autoencoder.
    z_Bfhwc: latents; may be in host memory.
    first: a jitted `decode_first`; None calls the method itself.
    step: a jitted `decode_step`; None calls the method itself.
  """
  stream = Stream(autoencoder, params, first=first, step=step)
  for i in range(z_Bfhwc.shape[1]):
    yield stream(z_Bfhwc[:, i : i + 1])
