"""A minute and more: chunk after chunk, the tail of what exists given.

Every chunk is a window of the same shape with a level for each latent frame,
so that one program makes them all; the first has what the mode gives, a later
one the last frames of what there is. What is kept between chunks is a `Tail`,
whose size does not depend on how long the video is.

A causal autoencoder's first latent frame is of one frame, every later one of
several (see conditions.Window). So the first one that is given is encoded anew,
from the last frame of the latent frame in that place; the others are as they
were made. The frames are decoded as one stream of latents, whose cache goes on
from chunk to chunk: where two chunks meet there is nothing to be seen of it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.diffusion import sampler
from spacetime.diffusion.conditioning import Condition


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Latent frames that are made at once.

  Attributes:
    number: from 0.
    start: first latent frame of the video that it makes.
    stop: the one to stop before.
    text: which of the schedule's texts it shows.
  """

  number: int
  start: int
  stop: int
  text: int


@dataclasses.dataclass(frozen=True)
class Rollout:
  """How a video is divided into chunks.

  Attributes:
    latents: latent frames of the video.
    window: of a chunk, those that are given it counted.
    given: of them, that a later chunk is given.
    starts: latent frame at which each text begins, rising from 0.
    noise: level of what a later chunk is given. Above 0 its own faults are
      partly unseen, and so handed on less; the video keeps what it had.

  Raises:
    ValueError: nothing is left to be made of a window, or starts that do not
      rise from 0 to within the video.
  """

  latents: int
  window: int
  given: int
  starts: tuple[int, ...] = (0,)
  noise: float = 0.0

  def __post_init__(self):
    if self.latents > self.window and not 1 <= self.given < self.window:
      raise ValueError(
        f'given={self.given} of {self.window} latent frames: expected 1 to '
        f'{self.window - 1}; change --given or --frames'
      )
    ends = (*self.starts[1:], self.latents)
    rise = all(a < b for a, b in zip(self.starts, ends, strict=True))
    if self.starts[0] != 0 or not rise:
      raise ValueError(
        f'starts={self.starts} in {self.latents} latent frames: expected them '
        'to rise from 0; change --schedule'
      )

  @property
  def chunks(self) -> tuple[Chunk, ...]:
    """All of them. One ends where the next text begins: a window of which
    less is kept."""
    found, start = [], 0
    ends = (*self.starts[1:], self.latents)
    for text, end in enumerate(ends):
      while start < end:
        new = self.window - self.given if found else self.window
        stop = min(start + new, end)
        found.append(Chunk(len(found), start, stop, text))
        start = stop
    return tuple(found)

  def kept(self, chunk: Chunk) -> slice:
    """The latent frames of a chunk's window that are the video's."""
    first = min(chunk.start, self.given)
    return slice(first, first + chunk.stop - chunk.start)


@dataclasses.dataclass(frozen=True)
class Tail:
  """The end of what exists: what the next chunk and its decoding go on from.

  Attributes:
    z_Bfhwc: float32, the last latent frames, as many as are given at most.
    end_BfHWC: uint8, the last frame of each.
    cache: of the decoder, a pytree of arrays.
  """

  z_Bfhwc: np.ndarray
  end_BfHWC: np.ndarray
  cache: object


def begins(condition: Condition, *, frames: int) -> Condition:
  """What the first chunk is given, with a level for every latent frame.

  Raises:
    ValueError: parts of latent frames are given.
  """
  if condition.row_fhw is not None or condition.known_Bfhwc is not None:
    raise ValueError(
      'parts of latent frames are given: a video of several chunks begins with '
      'whole ones; change --given'
    )
  batch = condition.z_Bfhwc.shape[0]
  level_Bf = jnp.broadcast_to(condition.level_BT, (batch, frames))
  return Condition(jnp.asarray(condition.z_Bfhwc), level_Bf)


def goes_on(
  tail: Tail, opening_B1hwc: np.ndarray, *, frames: int, noise: float = 0.0
) -> Condition:
  """What a later chunk is given.

  Args:
    tail: its latent frames but the first are given as they are.
    opening_B1hwc: the frame tail.end_BfHWC[:, 0], encoded alone.
    frames: latent frames of the chunk.
    noise: level of what is given.
  """
  batch, given, *cell = tail.z_Bfhwc.shape
  z_Bfhwc = np.zeros((batch, frames, *cell), np.float32)
  z_Bfhwc[:, :1] = opening_B1hwc
  z_Bfhwc[:, 1:given] = tail.z_Bfhwc[:, 1:]
  level_f = np.where(np.arange(frames) < given, noise, 1.0)
  level_Bf = np.broadcast_to(level_f.astype(np.float32), (batch, frames))
  return Condition(jnp.asarray(z_Bfhwc), jnp.asarray(level_Bf))


def keys(seed: int, batch: int, *, chunk: int) -> jax.Array:
  """A key for each clip's chunk. Those of the first are the clips' own, so that
  a long video begins as the short one of its seed."""
  keys_B = sampler.clip_keys(seed, batch)
  if chunk == 0:
    return keys_B
  return jax.vmap(lambda key: jax.random.fold_in(key, chunk))(keys_B)
