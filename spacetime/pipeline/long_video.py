"""Long videos: chunk after chunk, in memory that does not grow with duration.

`Chunks` generates and decodes; `write` puts its frames into files that grow
chunk by chunk, with a state beside them from which the same command resumes.
"""

import collections
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from spacetime.diffusion import conditioning, rollout
from spacetime.media import fragmented_mp4, video_writer
from spacetime.media.pixels import to_video
from spacetime.pipeline import (
  best_of_n,
  conditions,
  decode,
  generate,
  prompt_schedule,
  rollout_state,
)
from spacetime.pipeline import plan as plan_lib
from spacetime.pipeline.engine import Engine
from spacetime.pipeline.outputs import Targets
from spacetime.pipeline.plan import Plan
from spacetime.pipeline.prompt_embeds import PromptEmbeds


class _Stream:
  """Chunks whose latents are decoded as one stream, without seams.

  Later chunks are conditioned on the last latent frames.

  Args:
    engine: the model.
    plan: plan with a division into chunks.
    decoder: decoder of the latents.
    state: state to resume from; None starts a video.
  """

  def __init__(
    self,
    engine: Engine,
    plan: Plan,
    decoder: decode.Decoder,
    state: rollout_state.State | None,
  ):
    autoencoder = engine.autoencoder
    self._plan = plan
    self._autoencoder = engine.read('autoencoder')
    self._encode = engine.program('encode_first', autoencoder.encode_first)
    # Only the latent frames that the next chunk is conditioned on.
    self._z = collections.deque(maxlen=plan.division.context_frames)
    self._ends = collections.deque(maxlen=plan.division.context_frames)
    cache = None
    if state:
      latent = (plan.clips, 1, *plan.geometry.latent[1:], autoencoder.z_dim)
      shapes = jax.eval_shape(
        autoencoder.decode_first,
        self._autoencoder,
        jax.ShapeDtypeStruct(latent, np.float32),
      )
      tail = state.tail(shapes[0])
      cache = tail.cache
      self._z.extend(np.moveaxis(tail.z_Bfhwc, 1, 0))
      self._ends.extend(np.moveaxis(tail.frames_BFHWC, 1, 0))
    self._stream = decoder.stream(plan.geometry.latent[1:], cache)

  @property
  def tail(self) -> rollout.Tail:
    """The end of the video, which the next chunk continues."""
    return rollout.Tail(
      np.stack(self._z, 1), np.stack(self._ends, 1), self._stream.cache
    )

  def append(self, chunk: rollout.Chunk, z_Bfhwc: np.ndarray) -> np.ndarray:
    """The new frames_BFHWC of a chunk, uint8."""
    z_Bfhwc = z_Bfhwc[:, self._plan.division.output_slice(chunk)]
    parts = []
    for i in range(z_Bfhwc.shape[1]):
      parts.append(decode.frames(self._stream(z_Bfhwc[:, i : i + 1])))
      self._z.append(z_Bfhwc[:, i])
      self._ends.append(parts[-1][:, -1])
    return np.concatenate(parts, axis=1)

  def first(
    self, first: conditioning.Conditioning
  ) -> conditioning.Conditioning:
    """Conditioning of the first chunk, from that of the mode."""
    plan = self._plan
    return rollout.first_conditioning(
      first,
      frames=plan.geometry.latent[0],
      context_noise=plan.division.context_noise,
    )

  def next(self) -> conditioning.Conditioning:
    """Conditioning of the next chunk."""
    plan, tail = self._plan, self.tail
    video = to_video(tail.frames_BFHWC[:, :1])
    _, opening = self._encode(self._autoencoder, video)
    return rollout.next_conditioning(
      tail,
      np.asarray(opening),
      frames=plan.geometry.latent[0],
      context_noise=plan.division.context_noise,
    )


class _Clips:
  """Chunks that are clips of their own, each with the last frames of the video.

  So models that see known frames beside their latents continue a clip: they
  generate the known frames again, which are left out of the video.

  Args: see _Stream.
  """

  def __init__(
    self,
    engine: Engine,
    plan: Plan,
    decoder: decode.Decoder,
    state: rollout_state.State | None,
  ):
    self._engine, self._plan, self._decoder = engine, plan, decoder
    context, step = plan.division.context_frames, plan.geometry.stride[0]
    self._known = 1 + step * (context - 1)
    self._tail = state.tail(()) if state else None

  @property
  def tail(self) -> rollout.Tail:
    """The end of the video, which the next chunk continues."""
    return self._tail

  def append(self, chunk: rollout.Chunk, z_Bfhwc: np.ndarray) -> np.ndarray:
    """The new frames_BFHWC of a chunk, uint8."""
    stream = self._decoder.stream(self._plan.geometry.latent[1:])
    frames_BFHWC = np.concatenate(
      [
        decode.frames(stream(z_Bfhwc[:, i : i + 1]))
        for i in range(self._plan.division.output_slice(chunk).stop)
      ],
      axis=1,
    )
    self._tail = rollout.Tail(
      z_Bfhwc[:, :0], frames_BFHWC[:, -self._known :], ()
    )
    return frames_BFHWC[:, self._known if chunk.index else 0 :]

  def first(
    self, first: conditioning.Conditioning
  ) -> conditioning.Conditioning:
    """Conditioning of the first chunk, from that of the mode."""
    return first

  def next(self) -> conditioning.Conditioning:
    """Conditioning of the next chunk."""
    return conditions.continued(
      self._engine, self._plan, self._tail.frames_BFHWC
    )


class Chunks:
  """Generates the chunks of all clips of a plan, one after the other.

  Attributes:
    done: number of chunks that exist.

  Args:
    engine: the model.
    plan: plan with a division into chunks.
    embeds: prompt embeddings of all clips for each prompt of the schedule.
    state: state to resume from; None starts a video.
  """

  def __init__(
    self,
    engine: Engine,
    plan: Plan,
    embeds: PromptEmbeds,
    *,
    state: rollout_state.State | None = None,
  ):
    self._engine, self._plan, self._embeds = engine, plan, embeds
    self._run = generate.Programs(engine, plan.settings, plan.geometry.latent)
    # A single transformer stays in memory; two are read in turn.
    self._params = {}
    self.done = state.chunks if state else 0
    self._decode = generate.decoder(engine, plan.layout)
    sees = engine.networks.dit.config.sees
    kind = _Stream if sees == 'frames' else _Clips
    self._video = kind(engine, plan, self._decode, state)

  @property
  def tail(self) -> rollout.Tail:
    """The end of the video, which the next chunk continues."""
    return self._video.tail

  @property
  def steps_per_chunk(self) -> int:
    """Solver steps of a chunk, of all its candidates."""
    return self._run.steps * self._plan.candidates

  @property
  def remaining(self) -> tuple[rollout.Chunk, ...]:
    """The chunks that do not exist yet."""
    return self._plan.division.chunks[self.done :]

  def generate(self, chunk: rollout.Chunk) -> np.ndarray:
    """Generates the next chunk, uint8 frames_BFHWC.

    The first chunk begins with the frames of the input video, if any.
    """
    if chunk.index != self.done:
      raise ValueError(f'chunk {chunk.index}: expected {self.done}')
    frames_BFHWC = self._video.append(chunk, self._sample(chunk))
    video = self._plan.conditioning
    if chunk.index == 0 and video is not None and len(video.before_FHWC):
      before_BFHWC = np.stack([video.before_FHWC] * self._plan.clips)
      frames_BFHWC = np.concatenate([before_BFHWC, frames_BFHWC], axis=1)
    self.done += 1
    return frames_BFHWC

  def _sample(self, chunk: rollout.Chunk) -> np.ndarray:
    """Latents of the chunk with the latent frames it is conditioned on; for
    each clip, the best of its candidates."""
    conditioning = self._conditioning(chunk)
    samples = [
      self._candidate(chunk, conditioning, number)
      for number in range(self._plan.candidates)
    ]
    if len(samples) == 1:
      return samples[0]
    joins, videos = self._joins(chunk), [self._decode(z) for z in samples]
    chosen = [
      best_of_n.best([frames_BFHWC[i] for frames_BFHWC in videos], joins)
      for i in range(self._plan.clips)
    ]
    return np.stack([samples[number][i] for i, number in enumerate(chosen)])

  def _joins(self, chunk: rollout.Chunk) -> tuple[int, ...]:
    """The first new frame of a chunk, if there is motion on both sides."""
    video, sizes = self._plan.conditioning, self._plan.geometry
    if chunk.index:
      latent = self._plan.division.output_slice(chunk).start
      known = 1 + sizes.stride[0] * (latent - 1)
    elif video is not None:
      known = int(video.cond_mask_FHW.all((1, 2)).argmin())
    else:
      known = 0
    return (known,) if 2 <= known <= sizes.frames - 2 else ()

  def _candidate(
    self,
    chunk: rollout.Chunk,
    conditioning: conditioning.Conditioning,
    number: int,
  ) -> np.ndarray:
    """Latents of candidate `number` of the chunk, of all clips."""
    clips, run, count = self._plan.clips, self._run, self._plan.candidates
    first = chunk.prompt * clips
    rows = [range(first, first + clips)]
    length = self._engine.networks.text_length
    text = next(generate.batches(self._embeds, rows, length))
    keys = generate.clip_keys(self._plan, clips * count, chunk=chunk.index)
    keys = keys[number::count]
    state = run.init(keys, conditioning)
    for root in run.roots:
      params = self._params.get(root) or self._engine.read_transformer(root)
      if len(run.roots) == 1:
        self._params[root] = params
      state = run.run(root, params, state, text, conditioning)
    z_Bfhwc = np.asarray(generate.to_host(run.finalize(state)), np.float32)
    generate.check_latents(z_Bfhwc)
    return z_Bfhwc[:, len(self._plan.references) :]

  def _conditioning(self, chunk: rollout.Chunk) -> conditioning.Conditioning:
    if chunk.index:
      return self._video.next()
    plan = self._plan
    first = generate.conditioning(self._engine, plan, batch=plan.clips)
    return self._video.first(first)


def identity(plan: Plan, metadata: Mapping[str, Any]) -> dict[str, Any]:
  """All values that determine the video; a state to resume must match them."""
  division = plan.division
  return dict(metadata) | {
    'prompts': list(plan.prompts),
    'chunks': [
      [division.latent_frames, division.chunk_frames, division.context_frames],
      list(division.prompt_starts),
    ],
  }


def write(
  engine: Engine,
  plan: Plan,
  embeds: PromptEmbeds,
  targets: Targets,
  *,
  state: rollout_state.State | None,
  identity: Mapping[str, Any],
  on_frames: Callable[[np.ndarray, Mapping], np.ndarray] | None = None,
) -> None:
  """Writes the growing files of a plan's videos, resuming from a state.

  Args:
    engine: the model.
    plan: plan with a division into chunks.
    embeds: prompt embeddings of all clips for each prompt of the schedule.
    targets: the files.
    state: state of an interrupted run, or None.
    identity: see `identity`.
    on_frames: (frames_FHWC, metadata of the clip) -> uint8 frames to encode;
      the next chunk continues the unchanged ones.
  """
  chunks = Chunks(engine, plan, embeds, state=state)
  marks = state.marks if state else [None] * len(targets.parts)
  writers = [
    fragmented_mp4.Writer(path, fps=plan.fps, mark=mark)
    for path, mark in zip(targets.parts, marks, strict=True)
  ]
  each = chunks.steps_per_chunk
  total = each * len(plan.division.chunks)
  with engine.progress.steps(total, done=each * chunks.done):
    for chunk in chunks.remaining:
      frames_BFHWC = chunks.generate(chunk)
      for i, frames_FHWC in enumerate(frames_BFHWC):
        if on_frames:
          frames_FHWC = on_frames(frames_FHWC, clip_metadata(plan, i))
        writers[i].append(frames_FHWC)
        writers[i].cut()
      rollout_state.write(
        targets.state,
        chunks.tail,
        chunks=chunks.done,
        marks=tuple(writer.mark for writer in writers),
        identity=identity,
      )


def finish(
  plan: Plan, targets: Targets, metadata: Mapping[str, Any]
) -> dict[pathlib.Path, Mapping[str, Any]]:
  """Renames the finished videos and writes their sidecars.

  Returns:
    the metadata of each file.
  """
  written = {}
  files = zip(targets.parts, targets.videos, strict=True)
  for i, (part, path) in enumerate(files):
    target = video_writer.output_path(path, frames=1)
    if part.exists():  # else an interrupted run has renamed it
      fragmented_mp4.finish(part, target)
    video = dict(clip_metadata(plan, i)) | metadata
    video['chunks'] = chunk_metadata(plan, i)
    video_writer.write_sidecar(path, video)
    written[target] = video
  targets.state.unlink(missing_ok=True)
  return written


def clip_metadata(plan: Plan, clip: int) -> dict[str, Any]:
  """Prompts and number of a long video."""
  prompts = '; '.join(plan.prompts[clip :: plan.clips])
  identity = plan_lib.clip_identity(plan, clip)
  expanded = prompts != identity['original_prompt']
  return {'prompt': prompts, 'expanded': expanded} | identity


def chunk_metadata(plan: Plan, clip: int) -> list[dict[str, Any]]:
  """Frames, prompt and seed of each chunk of a long video."""
  video = plan.conditioning
  return prompt_schedule.metadata(
    plan.division,
    plan.prompts,
    clip=clip,
    clips=plan.clips,
    seed=plan.clip_seed(clip),
    step=plan.geometry.stride[0],
    before=0 if video is None else len(video.before_FHWC),
  )
