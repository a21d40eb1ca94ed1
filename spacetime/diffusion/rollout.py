"""Long videos, chunk after chunk, each conditioned on the end of the last.

All chunks have the same shape and a noise level for each latent frame, so that
one program samples them all; the first one has the mode's conditioning, a later
one the last latent frames of the video so far. The state between chunks is a
`Tail`, whose size does not depend on the length of the video.

A causal autoencoder's first latent frame encodes one frame, every later one
several (see conditioning_video.ConditioningVideo). So the first conditioning
latent of a chunk is encoded again, from the last frame of the latent frame in
its position; the others are reused as sampled. The latents are decoded as one
stream, whose cache continues from chunk to chunk, without a seam between them.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from spacetime import SettingError
from spacetime.diffusion.conditioning import Conditioning


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Latent frames that are sampled together.

  Attributes:
    index: from 0.
    start: first new latent frame of the video.
    stop: the one to stop before.
    prompt: index in the schedule's prompts.
  """

  index: int
  start: int
  stop: int
  prompt: int


@dataclasses.dataclass(frozen=True)
class Rollout:
  """Division of a video into chunks.

  Attributes:
    latent_frames: length of the video.
    chunk_frames: latent frames of a chunk, with its conditioning frames.
    context_frames: conditioning latent frames of a later chunk.
    prompt_starts: latent frame at which each prompt begins, rising from 0.
    context_noise: noise level of the conditioning frames of a later chunk.
      Above 0, faults of the video so far are partly hidden and propagate less;
      the output keeps them as they are.

  Raises:
    SettingError: no new frames in a chunk, or prompts that do not start in
      rising order from 0 within the video.
  """

  latent_frames: int
  chunk_frames: int
  context_frames: int
  prompt_starts: tuple[int, ...] = (0,)
  context_noise: float = 0.0

  def __post_init__(self):
    long = self.latent_frames > self.chunk_frames
    if long and not 1 <= self.context_frames < self.chunk_frames:
      raise SettingError(
        'cond_frames',
        self.context_frames,
        f'1 to {self.chunk_frames - 1} latent frames of a chunk of '
        f'{self.chunk_frames}',
        hint='or change `frames`',
      )
    ends = (*self.prompt_starts[1:], self.latent_frames)
    rise = all(a < b for a, b in zip(self.prompt_starts, ends, strict=True))
    if self.prompt_starts[0] != 0 or not rise:
      raise SettingError(
        'prompt_schedule',
        self.prompt_starts,
        f'latent frames that rise from 0 and are below {self.latent_frames}',
      )

  @property
  def chunks(self) -> tuple[Chunk, ...]:
    """All chunks. One that would pass the start of the next prompt ends there:
    the rest of its frames is discarded."""
    chunks, start = [], 0
    ends = (*self.prompt_starts[1:], self.latent_frames)
    for prompt, end in enumerate(ends):
      while start < end:
        context = self.context_frames if chunks else 0
        stop = min(start + self.chunk_frames - context, end)
        chunks.append(Chunk(len(chunks), start, stop, prompt))
        start = stop
    return tuple(chunks)

  def output_slice(self, chunk: Chunk) -> slice:
    """The latent frames of a chunk that are new frames of the video."""
    first = min(chunk.start, self.context_frames)
    return slice(first, first + chunk.stop - chunk.start)


@dataclasses.dataclass(frozen=True)
class Tail:
  """End of the video so far, from which sampling and decoding continue.

  Attributes:
    z_Bfhwc: float32, the last latent frames, at most context_frames; none where
      each chunk is a clip of its own, conditioned on frames.
    frames_BFHWC: uint8, the last frame of each; or the frames that the next
      chunk begins with.
    cache: cache of the decoder, a pytree of arrays.
  """

  z_Bfhwc: np.ndarray
  frames_BFHWC: np.ndarray
  cache: object


def first_conditioning(
  conditioning: Conditioning, *, frames: int, context_noise: float = 0.0
) -> Conditioning:
  """Conditioning of the first chunk, with a noise level for each latent frame.

  Args:
    conditioning: conditioning of the mode.
    frames: latent frames of the chunk.
    context_noise: of the later chunks, which the same program samples.

  Raises:
    SettingError: parts of latent frames are known.
  """
  if (
    conditioning.t_index_fhw is not None
    or conditioning.cond_mask_Bfhwc is not None
  ):
    raise SettingError(
      'cond_frames',
      None,
      'whole latent frames at the start of a video of several chunks',
    )
  batch = conditioning.z_Bfhwc.shape[0]
  t_Bf = jnp.broadcast_to(conditioning.t_BT, (batch, frames))
  context_Bf = jnp.zeros((batch, frames), bool) if context_noise else None
  return Conditioning(
    jnp.asarray(conditioning.z_Bfhwc), t_Bf, context_BT=context_Bf
  )


def next_conditioning(
  tail: Tail,
  first_z_B1hwc: np.ndarray,
  *,
  frames: int,
  context_noise: float = 0.0,
) -> Conditioning:
  """Conditioning of a later chunk.

  Args:
    tail: end of the video; all of its latent frames but the first are reused.
    first_z_B1hwc: latents of tail.frames_BFHWC[:, 0], encoded alone.
    frames: latent frames of the chunk.
    context_noise: highest noise level of the conditioning frames: they have
      that of the step where it is lower.
  """
  batch, context, *cell = tail.z_Bfhwc.shape
  z_Bfhwc = np.zeros((batch, frames, *cell), np.float32)
  z_Bfhwc[:, :1] = first_z_B1hwc
  z_Bfhwc[:, 1:context] = tail.z_Bfhwc[:, 1:]
  context_f = np.arange(frames) < context
  t_f = np.where(context_f, context_noise, 1.0)
  t_Bf, context_Bf = (
    jnp.asarray(np.broadcast_to(x, (batch, frames)))
    for x in (t_f.astype(np.float32), context_f)
  )
  return Conditioning(
    jnp.asarray(z_Bfhwc),
    t_Bf,
    context_BT=context_Bf if context_noise else None,
  )
