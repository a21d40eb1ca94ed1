"""Pipeline: a trained model that generates videos, the front door."""

import dataclasses
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from spacetime import SettingError, SettingWarning, sharding
from spacetime.checkpoint import load as load_lib
from spacetime.checkpoint.interop import network_files
from spacetime.data import geometry as geometry_lib
from spacetime.diffusion.settings import SamplingSettings
from spacetime.media import video_writer
from spacetime.pipeline import (
  best_of_n,
  generate,
  long_video,
  outputs,
  rollout_state,
  saved_programs,
)
from spacetime.pipeline import plan as plan_lib
from spacetime.pipeline import progress as progress_lib
from spacetime.pipeline import prompt_embeds as prompt_embeds_lib
from spacetime.pipeline import request as request_lib
from spacetime.pipeline.engine import Engine
from spacetime.pipeline.request import Request, Source
from spacetime.pipeline.video import Video

Progress = progress_lib.Callback | None
DEFAULT = Request.checkpoint  # of the flag
# (frames_FHWC, metadata) -> frames_FHWC, before they are encoded.
OnFrames = Callable[[np.ndarray, Mapping], np.ndarray]
# Noise levels of one of two transformers, in the name of a file or its folder.
NOISE = re.compile(
  r'(?<![a-z])(?i:high|low)(?=(?i:[-_ ]?noise)[^/]*(?:/[^/]*)?$)'
  r'|(?<![A-Za-z])(?:HIGH|LOW)(?![A-Za-z])(?=[^/]*$)'
)
# Settings of a request that a call does not have.
OF_MODEL = ('checkpoint', *request_lib.FILES, 'lora', 'lora_2', 'lora_strength')
OF_FILES = ('out', 'overwrite')
SAMPLING = tuple(field.name for field in dataclasses.fields(SamplingSettings))


def load(path: str, **options) -> 'Pipeline':
  """Loads a pipeline; its networks are read when they are needed.

  Args:
    path: a bundled name such as 'digits', a run, a weights folder, a diffusers
      folder, or a name on the Hub.
    **options: see Pipeline.

  Raises:
    ValueError: no such model, an incomplete one, or not a text-to-video model.
  """
  pipe = Pipeline(path, **options)
  pipe.engine  # noqa: B018 - opened now, so that errors are raised here
  return pipe


class Pipeline:
  """Generates videos with one model.

  Every method returns a Video, or a list of them for a list of prompts, `num`
  or `seeds`. Keywords besides those of a signature are fields of
  request.Request and settings of the sampler (steps, solver, shift, guidance,
  ...), in diffusers' spelling too. Programs are compiled at the first call of a
  shape, and reused.

  Args:
    path: path or name of the model; see load.
    lora: LoRA weights of the transformer: a path, or a list of paths and of
      pairs (path, strength); see request.parse_loras.
    lora_2: LoRA weights of the second of two transformers.
    lora_strength: factor on the strengths of all LoRA weights.
    transformer, transformer_2, vae, text_encoder, image_encoder, tokenizer:
      files of a published model's networks, in place of those of `path`.
    mesh: devices: a mesh, or its sizes such as {'context': 4}, of which the
      axis `data` takes the devices that the others leave. Guidance, prompts and
      seeds are shared over data and fsdp, tokens over context, heads over
      tensor. None is the first device.
    programs: folder of programs that spacetime compile --save has compiled for
      these devices; others are compiled when they are needed.
    program_cache: folder of programs, kept for later processes on a CPU; None
      keeps none.
    progress: whether calls show a bar on stderr.
  """

  def __init__(
    self,
    path: str | None,
    *,
    transformer: str | None = None,
    transformer_2: str | None = None,
    vae: str | None = None,
    text_encoder: str | None = None,
    image_encoder: str | None = None,
    tokenizer: str | None = None,
    lora: Source | None = None,
    lora_2: Source | None = None,
    lora_strength: float = 1.0,
    mesh=None,
    programs: str | None = None,
    program_cache: str | None = None,
    progress: bool = True,
  ):
    self.path = path if path is None else _path('checkpoint', path)
    self.progress = progress
    self._mesh, self._engine, self._programs = mesh, None, programs
    self._program_cache = program_cache
    self._files = {
      name: _path(name, value)
      for name, value in zip(
        request_lib.FILES,
        (
          *(transformer, transformer_2, vae, text_encoder, image_encoder),
          tokenizer,
        ),
        strict=True,
      )
      if value is not None
    }
    request_lib.check_strength(lora_strength)
    self._lora = dict(lora=lora, lora_2=lora_2, lora_strength=lora_strength)

  def __repr__(self) -> str:
    return f'Pipeline({self.path!r})'

  @property
  def engine(self) -> Engine:
    """The opened model with its parameters and programs."""
    if self._engine is None:
      mesh = sharding.as_mesh(self._mesh)
      store = None
      if self._programs is not None:
        store = saved_programs.Store(self._programs, mesh)
      path, files = self.path, network_files.Files(**self._files)
      if path == DEFAULT and files.transformer:  # nothing of it would be used
        path = None
      model = load_lib.open_model(
        path, mesh=mesh, files=files, cache=self._program_cache
      )
      _warn_of_order(model, {'checkpoint': path} | self._files | self._lora)
      self._engine = Engine(
        _with_lora(model, **self._lora),
        mesh=mesh,
        programs=store,
        program_cache=self._program_cache,
      )
    return self._engine

  # -- modes -------------------------------------------------------------------

  def __call__(
    self,
    prompt: str | Sequence[str] | None = None,
    *,
    image: Source | None = None,
    last_image: Source | None = None,
    at: str | int | None = None,
    frames: int | None = None,
    size: tuple[int, int] | str | None = None,
    fps: float | None = None,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    num: int = 1,
    negative_prompt: str = '',
    callback: Progress = None,
    **settings,
  ) -> Video | list[Video]:
    """Generates videos of prompts.

    Args:
      prompt: a text, or several.
      image: an image that becomes one frame of the video.
      at: the frame that the image becomes: 'first', 'last' or a number.
      last_image: an image that becomes the last frame, beside `image`.
      frames: number of frames of the clip.
      size: (width, height) in pixels.
      fps: frames per second.
      seed: random seed; the same seed gives the same videos.
      seeds: a seed for each clip; a clip does not depend on the other seeds.
      num: number of videos of each prompt.
      negative_prompt: text that the videos should not show.
      callback: called after each solver step with (steps done, total steps).
      **settings: see Pipeline.

    Raises:
      SettingError: it names the setting to change.
    """
    if at is not None:
      if settings.get('image_at') is not None:
        raise SettingError(
          'image_at', settings['image_at'], 'none beside at, its short form'
        )
      settings['image_at'] = at
    request = self._request(
      prompt=prompt,
      image=image,
      last_image=last_image,
      frames=frames,
      size=size,
      fps=fps,
      seed=seed,
      seeds=seeds,
      num=num,
      negative_prompt=negative_prompt,
      **settings,
    )
    return self.generate(request, callback=callback)

  def still(self, prompt, **settings) -> Video | list[Video]:
    """Generates one image of a prompt, as a Video of one frame."""
    return self(prompt, mode='still', **settings)

  def extend(
    self,
    clip: Source,
    prompt,
    *,
    frames: int | None = None,
    cond_frames: int | None = None,
    backward: bool = False,
    **settings,
  ) -> Video | list[Video]:
    """Continues a clip, or generates the frames before it.

    Args:
      clip: a path, an array or a Video.
      prompt: prompt of the new frames.
      frames: number of conditioning and new frames together.
      cond_frames: frames of the clip that the new ones continue.
      backward: whether the new frames come before the clip.
      **settings: see __call__.
    """
    return self(
      prompt,
      mode='extend_backward' if backward else 'extend',
      video=clip,
      frames=frames,
      cond_frames=cond_frames,
      **settings,
    )

  def loop(self, clip: Source, prompt, **settings) -> Video | list[Video]:
    """Loops a clip: adds frames that lead from its end to its start."""
    return self(prompt, mode='loop', video=clip, **settings)

  def connect(
    self, first: Source, second: Source, prompt, **settings
  ) -> Video | list[Video]:
    """Connects two clips by new frames that lead from one to the other."""
    return self(prompt, mode='connect', video=first, video2=second, **settings)

  def inpaint(
    self, clip: Source, mask: Source, prompt, **settings
  ) -> Video | list[Video]:
    """Regenerates the light pixels of a mask in a clip."""
    return self(prompt, mode='inpaint', video=clip, mask=mask, **settings)

  def outpaint(
    self, clip: Source, size: tuple[int, int], prompt, **settings
  ) -> Video | list[Video]:
    """Generates a larger picture of (width, height) around a clip."""
    return self(prompt, mode='outpaint', video=clip, size=size, **settings)

  def control(self, clip: Source, prompt, **settings) -> Video | list[Video]:
    """Generates a video that follows the outlines, depth or poses of a clip,
    with a VACE model."""
    return self(prompt, mode='control', video=clip, **settings)

  def edit(
    self, clip: Source, prompt, *, strength: float, **settings
  ) -> Video | list[Video]:
    """Edits a clip to match a prompt.

    Args:
      clip: a path, an array or a Video.
      prompt: prompt of the result.
      strength: noise level that the edit starts from: above 0 (nothing
        changes) to 1 (nothing stays).
      **settings: see __call__; `mask` and `cond_frames` preserve parts of the
        clip.
    """
    return self(prompt, mode='edit', video=clip, strength=strength, **settings)

  def stream(
    self,
    prompt: str | None = None,
    *,
    seconds: float,
    prompt_schedule=None,
    callback: Progress = None,
    **settings,
  ) -> Iterator[Video]:
    """Yields a long video chunk by chunk, in constant memory.

    Args:
      prompt: prompt of all chunks.
      seconds: duration of the video.
      prompt_schedule: in place of prompt, pairs (seconds, prompt) or
        '0: PROMPT; 10: PROMPT'.
      callback: called after each solver step with (steps done, total steps).
      **settings: see __call__; `context_noise` and `cond_frames` control how a
        chunk continues the one before.

    Raises:
      SettingError: it names the setting to change, such as `num` for more than
        one video.
    """
    request = self._request(
      prompt=prompt,
      seconds=seconds,
      prompt_schedule=prompt_schedule,
      **settings,
    )
    plan = plan_lib.resolve(request, self.engine)
    if plan.clips != 1:
      raise SettingError('num', plan.clips, 'one video at a time in a stream')
    return self._stream(plan, callback)

  # -- requests ----------------------------------------------------------------

  def generate(
    self, request: Request, *, callback: Progress = None
  ) -> Video | list[Video]:
    """Generates the videos of a request: one, or a list of several."""
    self._check_model(request)
    plan = plan_lib.resolve(request, self.engine)
    if plan.division is not None:
      raise SettingError('seconds', request.seconds, '`stream`, or `write`')
    videos = [video for _, video in self._videos(plan, callback)]
    single = isinstance(request.prompt, str) or request.prompt is None
    return videos[0] if single and len(videos) == 1 else videos

  def geometry(self, request: Request) -> geometry_lib.Geometry:
    """Sizes of a request's clips."""
    return plan_lib.geometry(request, self.engine)

  def write(
    self,
    request: Request,
    *,
    command: str | None = None,
    callback: Progress = None,
    on_frames: OnFrames | None = None,
    mark: str = '',
    report: outputs.Report | None = None,
  ) -> Mapping:
    """Writes the videos of a request to `out`, with sidecars and a sheet.

    Videos are written as they are finished. Interrupted, the same request
    writes the rest: videos that exist are kept, and a long video resumes.

    Args:
      request: a request with `out`.
      command: command line that made the request, for the sidecars.
      callback: called after each solver step with (steps done, total steps).
      on_frames: called with uint8 frames_FHWC and their metadata before they
        are encoded; returns the frames to write, such as with a watermark. A
        long video passes chunk after chunk.
      mark: what `on_frames` does, such as the fingerprint of a key: videos with
        another mark are of another request.
      report: called with (path, metadata) of each file; metadata of a video
        that was there has 'kept'.

    Returns:
      The metadata of each file, by its path.

    Raises:
      SettingError: it names the setting to change.
    """
    self._check_model(request)
    plan = plan_lib.resolve(request, self.engine)
    targets = outputs.targets(request, clips=plan.clips)
    outputs.check(targets, request, frames=plan.frames)
    video_writer.check_rate(request.out, fps=plan.fps)
    marked = {'marked': mark or on_frames is not None}
    resumes = targets.state is not None and targets.state.exists()
    finished = {}
    if not resumes:
      shared = plan_lib.metadata(plan, self.engine) | marked
      finished = outputs.finished(
        targets,
        request,
        [plan_lib.clip_identity(plan, i) | shared for i in range(plan.clips)],
        frames=plan.frames,
      )
    writer = outputs.Writer(targets, report)
    for number, metadata in finished.items():
      writer.keep(number, metadata, plan.frames)
    if len(finished) == plan.clips:
      return writer.written
    origin = outputs.provenance(command) | marked
    try:
      if plan.division is not None:
        self._write_long(plan, targets, writer, origin, callback, on_frames)
      else:
        pending = set(range(plan.clips)) - finished.keys()
        for number, video in self._videos(plan, callback, pending=pending):
          video.metadata.update(origin)
          if on_frames is not None:
            frames_FHWC = on_frames(video.frames, video.metadata)
            video = dataclasses.replace(video, frames=frames_FHWC)
          writer.write(number, video)
        writer.close()
    except (KeyboardInterrupt, OSError) as e:
      done = [m for m in writer.written.values() if 'number' in m]
      e.add_note(
        f'{len(done)} of {plan.clips} videos are written; the same command '
        'writes the rest'
      )
      raise
    return writer.written

  def _check_model(self, request: Request) -> None:
    """Refuses a request of another model's files."""
    own = self._files | self._lora
    for name in (*request_lib.FILES, 'lora', 'lora_2'):
      value = request_lib.describe(getattr(request, name))
      if value is not None and value != request_lib.describe(own.get(name)):
        raise SettingError(
          name,
          value,
          f'that of the pipeline, {request_lib.describe(own.get(name))}, which '
          'from_request makes of the request',
        )

  def _request(self, **values) -> Request:
    """The request of a call.

    Raises:
      SettingError: a setting of the pipeline, or of files.
    """
    for name, value in values.items():
      if value is None or name not in (*OF_MODEL, *OF_FILES):
        continue
      raise SettingError(
        name,
        request_lib.describe(value),
        'none in a call, which returns videos: their `save` writes files'
        if name in OF_FILES
        else 'none in a call: it belongs to the pipeline, as in spacetime.load('
        f'..., {name}=...)',
      )
    model = {'checkpoint': self.path, **self._files, **self._lora}
    return request_lib.from_keywords(SAMPLING, **model, **values)

  def _videos(
    self,
    plan: plan_lib.Plan,
    callback: Progress,
    *,
    pending: set[int] | None = None,
  ) -> Iterator[tuple[int, Video]]:
    """Yields (number, video) as videos are finished.

    Args:
      plan: plan of clips.
      callback: called after each solver step.
      pending: numbers of the videos that are needed; None needs all.
    """
    began = time.monotonic()
    engine, count = self._start(callback), plan.candidates
    plan = plan_lib.expand(plan, engine)
    embeds = self._embeds(plan).repeated(count)
    metadata = plan_lib.metadata(plan, engine) | plan_lib.recorded(plan)
    rows = None
    if pending is not None:
      rows = {i * count + k for i in pending for k in range(count)}
    video = plan.conditioning
    joins = () if video is None else best_of_n.joins(video)
    samples = []
    for row, frames_FHWC in generate.clips(engine, plan, embeds, pending=rows):
      number = row // count
      if rows is not None and row not in rows:
        continue
      samples.append(frames_FHWC)
      if len(samples) < count:
        continue
      chosen = best_of_n.best(samples, joins)
      yield (
        number,
        Video(
          samples[chosen],
          plan.fps,
          {
            'prompt': plan.prompts[number],
            'expanded': plan.prompts[number] != plan.original_prompts[number],
            **plan_lib.clip_identity(plan, number),
            'candidate': chosen,
            **metadata,
            'compute_seconds': round(time.monotonic() - began, 3),
          },
        ),
      )
      samples = []

  def _stream(self, plan: plan_lib.Plan, callback: Progress) -> Iterator[Video]:
    engine = self._start(callback)
    plan = plan_lib.expand(plan, engine)
    chunks = long_video.Chunks(engine, plan, self._embeds(plan))
    metadata = plan_lib.metadata(plan, engine)
    metadata |= long_video.clip_metadata(plan, 0)
    each = long_video.chunk_metadata(plan, 0)
    with engine.progress.steps(chunks.steps_per_chunk * len(each)):
      for chunk, values in zip(chunks.remaining, each, strict=True):
        frames_FHWC = chunks.generate(chunk)[0]
        yield Video(frames_FHWC, plan.fps, metadata | {'chunk': values})

  def _write_long(
    self,
    plan: plan_lib.Plan,
    targets: outputs.Targets,
    writer: outputs.Writer,
    origin: Mapping,
    callback: Progress,
    on_frames: OnFrames | None,
  ) -> None:
    began = time.monotonic()
    engine = self._start(callback)
    plan = plan_lib.expand(plan, engine)
    metadata = plan_lib.metadata(plan, engine)
    identity = long_video.identity(plan, metadata)
    identity |= {'marked': origin['marked']}
    state = rollout_state.read(
      targets.state, identity, restart=plan.request.overwrite
    )
    embeds = self._embeds(plan)
    long_video.write(
      engine,
      plan,
      embeds,
      targets,
      state=state,
      identity=identity,
      on_frames=on_frames
      and (lambda frames, clip: on_frames(frames, metadata | clip)),
    )
    metadata |= plan_lib.recorded(plan) | dict(origin)
    metadata['compute_seconds'] = round(time.monotonic() - began, 3)
    for path, values in long_video.finish(plan, targets, metadata).items():
      writer.add(path, values)

  def _start(self, callback: Progress) -> Engine:
    """The engine with the progress of a new call."""
    self.engine.progress = progress_lib.Progress(
      show=self.progress, callback=callback
    )
    return self.engine

  def _embeds(self, plan: plan_lib.Plan) -> prompt_embeds_lib.PromptEmbeds:
    return prompt_embeds_lib.from_prompts(
      self.engine,
      plan.prompts,
      negative=plan.negative_prompt,
      read=plan.prompt_embeds,
      cache=plan.cache,
    )


def from_request(request: Request, **options) -> Pipeline:
  """The pipeline of a request's checkpoint and LoRA weights, not yet opened.

  Args:
    request: the request.
    **options: mesh, programs and program_cache of the pipeline.
  """
  return Pipeline(
    request.checkpoint,
    **{name: getattr(request, name) for name in request_lib.FILES},
    lora=request.lora,
    lora_2=request.lora_2,
    lora_strength=request.lora_strength,
    **options,
  )


def _path(name: str, value) -> str:
  """A setting as a path.

  Raises:
    SettingError: another type.
  """
  if not isinstance(value, (str, os.PathLike)):
    raise SettingError(name, request_lib.describe(value), 'a path')
  return os.fspath(value)


def _warn_of_order(model: load_lib.Model, settings: Mapping) -> None:
  """Warns of files that are named after the levels of the other transformer.

  Args:
    model: the opened model.
    settings: files of networks and LoRA weights, by setting.
  """
  if 'dit_2' not in model.readers:
    if model.experiment.published:
      _warn_of_half(settings)
    return
  for name in ('transformer', 'transformer_2', 'lora', 'lora_2'):
    own, other = ('low', 'high') if name.endswith('_2') else ('high', 'low')
    for path in _paths(settings, name):
      if _levels(path) == {other} and own not in os.path.basename(path).lower():
        warnings.warn(
          SettingWarning(
            name,
            path,
            f'the file is named after the {other} noise levels, `{name}` is of '
            f'the {own} ones',
          ),
          stacklevel=3,
        )


def _warn_of_half(settings: Mapping) -> None:
  """Warns of a file for some noise levels in a model of one transformer."""
  for name in ('checkpoint', 'transformer', 'lora'):
    for path in _paths(settings, name):
      if len(levels := _levels(path)) == 1:
        warnings.warn(
          SettingWarning(
            name,
            path,
            f'the file is named after the {levels.pop()} noise levels, but is '
            'used for all of them, since the model has one transformer: for '
            'two, set `transformer` and `transformer_2`',
          ),
          stacklevel=4,
        )


def _paths(settings: Mapping, name: str) -> list[str]:
  """The paths of a setting of files or LoRA weights."""
  value = settings.get(name)
  if name.startswith('lora'):
    return [path for path, _ in request_lib.parse_loras(name, value)]
  return [os.fspath(value)] if value else []


def _levels(path: str) -> set[str]:
  """The noise levels that a file is named after: 'high', 'low'."""
  return {match[0].lower() for match in NOISE.finditer(path)}


def _with_lora(
  model: load_lib.Model, *, lora, lora_2, lora_strength: float
) -> load_lib.Model:
  """The model with LoRA weights, applied when a transformer is read."""
  strengths = {}
  for name, value, root in (('lora', lora, 'dit'), ('lora_2', lora_2, 'dit_2')):
    for path, strength in request_lib.parse_loras(name, value):
      if root not in model.readers:
        raise SettingError(
          name, path, 'none, since the model has one transformer: use `lora`'
        )
      total = lora_strength * strength
      if total:
        file = os.path.realpath(path)
        strengths.setdefault((root, file), []).append(total)
      else:
        warnings.warn(
          SettingWarning(name, path, 'no effect, since its strength is 0'),
          stacklevel=2,
        )
      try:
        model = model.with_lora(path, root=root, strength=total)
      except ValueError as e:
        raise SettingError(
          name, path, 'LoRA weights of this model', hint=str(e)
        ) from e
  for (root, path), values in strengths.items():
    if len(values) > 1:
      warnings.warn(
        SettingWarning(
          'lora' if root == 'dit' else 'lora_2',
          path,
          f'the file is named {len(values)} times: its strengths add up to '
          f'{sum(values):g}',
        ),
        stacklevel=2,
      )
  return model
