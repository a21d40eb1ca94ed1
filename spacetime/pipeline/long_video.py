"""A video of many chunks: made, decoded and written as it comes.

What is held does not grow with the duration. After each chunk the files hold
all that exists, and a state beside them: the same command goes on from there.
"""

import collections
import functools
import hashlib
from typing import Any

import jax
import numpy as np
import tqdm

from spacetime.diffusion import conditioning, rollout
from spacetime.media import fragmented_mp4, video_writer
from spacetime.media.pixels import to_frames, to_video
from spacetime.pipeline import decode as decode_lib
from spacetime.pipeline import (
  generate,
  prompt_embeds,
  prompt_schedule,
  request,
  rollout_state,
)


def identity(plan: request.Plan, about: dict[str, Any]) -> dict[str, Any]:
  """All that decides which video is made: what a state must agree with."""
  found = dict(about) | {
    'prompts': list(plan.prompts),
    'chunks': list(map(list, _borders(plan.division))),
    'context_noise': plan.division.context_noise,
  }
  if plan.window is not None:
    found['files'] = _digest(plan.window.before_FHWC, plan.window.frames_FHWC)
  if plan.given is not None:
    found['features'] = _digest(*plan.given.text, *plan.given.negative)
  return found


def _borders(division: rollout.Rollout):
  yield (division.latent_frames, division.chunk_frames, division.context_frames)
  yield division.prompt_starts


def _digest(*arrays: np.ndarray) -> str:
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(f'{array.shape} {array.dtype}'.encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()[:16]


class Maker:
  """Makes the chunks of all clips of a plan, one after the other.

  Attributes:
    run: the programs, one of each for all chunks.

  Args:
    plan: with a division into chunks.
    told: features, of all clips for each text of the schedule.
    seed: of the noise.
    state: where to go on; None begins.
  """

  def __init__(
    self,
    plan: request.Plan,
    told: prompt_embeds.Texts,
    *,
    seed: int,
    state: rollout_state.State | None = None,
  ):
    self._plan, self._told, self._seed = plan, told, seed
    model, codec = plan.model, plan.model.networks.autoencoder
    self.run = generate.programs(model, plan.settings, latent=plan.grid.latent)
    # One transformer stays; of two, each is read when its steps come.
    one = len(self.run.steps) == 1
    self._read = functools.cache(model.read) if one else model.read
    self._codec = model.read('autoencoder')
    self._encode = jax.jit(codec.encode_first)
    decode = decode_lib.Decoder(codec, self._codec, plan.layout)
    marks = state.marks if state else [None] * len(plan.targets.parts)
    self._files = [
      fragmented_mp4.Writer(path, fps=plan.fps, mark=mark)
      for path, mark in zip(plan.targets.parts, marks, strict=True)
    ]
    self._clips, self.done = len(self._files), state.chunks if state else 0
    # No more than is given to the next chunk, and its last frames.
    self._z = collections.deque(maxlen=plan.division.context_frames)
    self._ends = collections.deque(maxlen=plan.division.context_frames)
    cache = None
    if state:
      latent = (self._clips, 1, *plan.grid.latent[1:], codec.z_dim)
      shapes = jax.eval_shape(
        codec.decode_first,
        self._codec,
        jax.ShapeDtypeStruct(latent, np.float32),
      )
      tail = state.tail(shapes[0])
      cache = tail.cache
      self._z.extend(np.moveaxis(tail.z_Bfhwc, 1, 0))
      self._ends.extend(np.moveaxis(tail.last_frame_BfHWC, 1, 0))
    self._stream = decode.stream(plan.grid.latent[1:], cache)

  def make(self, chunk: rollout.Chunk) -> None:
    """Makes a chunk and writes its frames."""
    if chunk.index != self.done:
      raise ValueError(f'chunk {chunk.index}: expected {self.done}')
    z_Bfhwc = self._draw(chunk)[:, self._plan.division.output_slice(chunk)]
    window = self._plan.window
    if chunk.index == 0 and window is not None and len(window.before_FHWC):
      for file in self._files:
        file.append(window.before_FHWC)
    for i in range(z_Bfhwc.shape[1]):
      frames_BFHWC = to_frames(self._stream(z_Bfhwc[:, i : i + 1]))
      for file, frames_FHWC in zip(self._files, frames_BFHWC, strict=True):
        file.append(frames_FHWC)
      self._z.append(z_Bfhwc[:, i])
      self._ends.append(frames_BFHWC[:, -1])
    for file in self._files:
      file.cut()
    self.done += 1

  def save(self, about: dict[str, Any]) -> None:
    """Writes the state beside the files."""
    rollout_state.write(
      self._plan.targets.state,
      self._tail(),
      chunks=self.done,
      marks=tuple(file.mark for file in self._files),
      about=about,
    )

  def _draw(self, chunk: rollout.Chunk) -> np.ndarray:
    """Latents of the chunk's whole window."""
    first = chunk.prompt * self._clips
    rows = [range(first, first + self._clips)]
    length = self._plan.model.networks.text_length
    text = next(generate.batches(self._told, rows, length))
    keys = rollout.chunk_keys(self._seed, self._clips, chunk=chunk.index)
    condition = self._condition(chunk)
    carry = self.run.init(keys, condition)
    for root, advance in self.run.steps.items():
      params = {'dit': self._read(root)}
      carry = advance(params, carry, *text, condition)
    return np.asarray(self.run.finalize(carry), np.float32)

  def _condition(self, chunk: rollout.Chunk) -> conditioning.Conditioning:
    plan, codec = self._plan, self._plan.model.networks.autoencoder
    frames = plan.grid.latent[0]
    if chunk.index:
      tail = self._tail()
      video = to_video(tail.last_frame_BfHWC[:, :1])
      _, opening = self._encode(self._codec, video)
      return rollout.next_conditioning(
        tail,
        np.asarray(opening),
        frames=frames,
        context_noise=plan.division.context_noise,
      )
    latent = (*plan.grid.latent, codec.z_dim)
    condition = conditioning.pure_noise(self._clips, latent)
    if plan.window is not None:
      condition = generate.given(
        plan.model, plan.window, settings=plan.settings, batch=self._clips
      )
    return rollout.first_conditioning(condition, frames=frames)

  def _tail(self) -> rollout.Tail:
    return rollout.Tail(
      np.stack(self._z, 1), np.stack(self._ends, 1), self._stream.cache
    )


def make(
  plan: request.Plan,
  told: prompt_embeds.Texts,
  *,
  seed: int,
  state: rollout_state.State | None,
  about: dict[str, Any],
) -> None:
  """Makes the videos of a plan, from where a state has them.

  Args:
    plan: with a division into chunks.
    told: features, of all clips for each text of the schedule.
    seed: of the noise.
    state: of a run that was stopped, or None.
    about: `identity`.
  """
  maker = Maker(plan, told, seed=seed, state=state)
  chunks = plan.division.chunks
  bar = tqdm.tqdm(
    total=len(chunks), initial=maker.done, desc='sample', unit='chunk'
  )
  with bar:
    for chunk in chunks[maker.done :]:
      maker.make(chunk)
      maker.save(about)
      bar.update()


def finish(plan: request.Plan, about: dict[str, Any], *, seed: int) -> None:
  """Gives the videos their names, with a sidecar each."""
  targets, window = plan.targets, plan.window
  before = 0 if window is None else len(window.before_FHWC)
  clips = len(targets.parts)
  rows = zip(targets.parts, targets.videos, strict=True)
  for i, (part, path) in enumerate(rows):
    target = video_writer.output_path(path, frames=1)
    if part.exists():  # else a run that was stopped here has done it
      fragmented_mp4.finish(part, target)
    chunks = prompt_schedule.told(
      plan.division,
      plan.prompts,
      clip=i,
      clips=clips,
      seed=seed,
      step=plan.grid.stride[0],
      before=before,
    )
    words = {
      'prompt': '; '.join(plan.prompts[i::clips]),
      'prompt_asked': '; '.join(plan.asked[i::clips]),
    }
    made = {'context_noise': plan.division.context_noise, 'chunks': chunks}
    video_writer.write_sidecar(path, words | {'number': i} | about | made)
    print(f'{target}: {words["prompt"]}')
  targets.state.unlink(missing_ok=True)
