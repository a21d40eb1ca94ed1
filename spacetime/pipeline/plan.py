"""Plan: a request resolved once against a model, frozen and complete.

Everything that can be refused is refused here, before a parameter is read or a
program compiled.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

import spacetime
from spacetime import SettingError
from spacetime.config import mesh as mesh_lib
from spacetime.config import networks
from spacetime.data import geometry as geometry_lib
from spacetime.diffusion import conditioning_video, rollout
from spacetime.diffusion.settings import SamplingSettings
from spacetime.pipeline import decode, inputs, modes, prompt_schedule
from spacetime.pipeline import prompt_embeds as prompt_embeds_lib
from spacetime.pipeline import prompts as prompts_lib
from spacetime.pipeline import unused as unused_lib
from spacetime.pipeline.engine import Engine
from spacetime.pipeline.request import (
  FIELDS,
  Request,
  describe,
  parse_seeds,
  parse_size,
)
from spacetime.pipeline.video import Video

# Settings that change no frame, or that the identity has in resolved form. A
# request with others than these makes the same videos.
UNIDENTIFYING = {
  *('prompt', 'prompts_file', 'num', 'out', 'overwrite', 'batch_size', 'size'),
  *('prompt_embeds_cache', 'expand_model', 'expand_timeout'),
}
# Of these, settings that sidecars record beside the identity.
RECORDED = ('prompts_file', 'num', 'batch_size', 'expand_model')
# Modes whose clips go on from known frames.
CONTINUING = ('image', 'extend', 'extend_backward', 'loop', 'connect')


@dataclasses.dataclass(frozen=True)
class Plan:
  """A request resolved to prompts, sizes, settings and conditioning.

  Attributes:
    request: the original request.
    mode: name of the mode.
    prompts: prompt of each clip; for long videos, all clips for each prompt of
      the schedule. Encoded unless `prompt_embeds` replaces them.
    original_prompts: the prompts before expansion.
    prompt_embeds: embeddings from a file or arrays, or None.
    negative_prompt: negative prompt to encode, or None.
    seed: seed of all clips, which their numbers are folded into.
    seeds: seed of each clip, or None.
    geometry: sizes of the clip, or of a chunk.
    settings: settings of the sampler.
    conditioning: the conditioning video, or None.
    fps: frames per second.
    cache: cache of prompt embeddings, or None.
    layout: division of frames while they are decoded.
    division: division of a long video into chunks; else None.
    unused: settings of the request without effect, with the reason.
    images: images that the model sees beside the text, at their own sizes.
    references: reference images at the clip's size.
  """

  request: Request
  mode: str
  prompts: tuple[str, ...]
  original_prompts: tuple[str, ...]
  prompt_embeds: prompt_embeds_lib.PromptEmbeds | None
  negative_prompt: str | None
  seed: int
  seeds: tuple[int, ...] | None
  geometry: geometry_lib.Geometry
  settings: SamplingSettings
  conditioning: conditioning_video.ConditioningVideo | None
  fps: float
  cache: prompt_embeds_lib.Cache | None
  layout: decode.Layout
  division: rollout.Rollout | None = None
  unused: Mapping[str, str] = dataclasses.field(default_factory=dict)
  images: tuple[np.ndarray, ...] = ()
  references: tuple[np.ndarray, ...] = ()

  @property
  def batch_size(self) -> int:
    """Clips that are sampled at once."""
    return self.request.batch_size

  @property
  def candidates(self) -> int:
    """Candidates of each clip."""
    return self.request.best_of

  @property
  def clips(self) -> int:
    """Videos of the plan, each counted once however many candidates it has."""
    return len(self.prompts) // (
      len(self.division.prompt_starts) if self.division else 1
    )

  def clip_seed(self, clip: int) -> list[int]:
    """Seed and number from which the random key of a clip is computed."""
    if self.seeds is not None:
      return [self.seeds[clip], 0]
    return [self.seed, clip]

  @property
  def frames(self) -> int:
    """Frames of each written video."""
    video = self.conditioning
    if self.division is None:
      return self.geometry.frames if video is None else video.length
    before = 0 if video is None else len(video.before_FHWC)
    stride = self.geometry.stride[0]
    return before + 1 + stride * (self.division.latent_frames - 1)


def _sampling(request: Request, *, continues: bool) -> dict:
  """The settings of the sampler that are set, by name.

  Clips that go on from known frames leave out skip-layer guidance, unless it is
  set: it makes joins rougher (BUILD_NOTES.md).
  """
  changes = {k: v for k, v in request.sampling.items() if v is not None}
  return {'skip_layers': ()} | changes if continues else changes


def resolve(request: Request, engine: Engine) -> Plan:
  """The plan of a request; prompts are not expanded yet.

  Raises:
    SettingError: it names the setting to change.
    ValueError: a broken file.
  """
  mode, model = modes.choose(request), engine.networks.dit.config
  modes.check_model(mode, request, model)
  scheduled = prompt_schedule.read(request)
  prompts = prompts_lib.read(request) if scheduled is None else scheduled
  arrays = None
  if prompts is None:
    prompts, arrays = _read_embeds(request)
  seeds = parse_seeds(request)
  parse_size(request)
  clips = request.num * (1 if scheduled else len(prompts))
  if seeds is not None and len(seeds) != clips:
    raise SettingError('seeds', describe(request.seeds), f'{clips} of them')
  prompt_schedule.check(request, mode, clips=clips)
  fps = engine.data.fps if request.fps is None else request.fps
  _check_rate(request, engine)
  sizes = geometry(request, engine)
  division = prompt_schedule.divide(request, sizes, fps=fps, sees=model.sees)
  _check_mesh(request, engine, sizes)
  # The coder of an autoencoder without parameters does not gain by sharing.
  layout = decode.parse(
    request,
    latent=sizes.latent[1:],
    mesh=engine.mesh if 'autoencoder' in engine.model.readers else None,
  )
  continues = mode in CONTINUING or division is not None
  sampling = _sampling(request, continues=continues)
  settings = engine.settings(preset=request.preset, **sampling)
  _check_boundary(request, engine)
  unused_lib.check_sizes(engine, sizes, settings)
  unused_lib.warn_of_start(settings)
  unused_lib.warn_of_preset(request, engine, settings)
  unused_lib.warn_of_control(request)
  engine.samplers(settings, sizes.latent)  # refuses what the model has not
  unused_lib.warn_of_guidance(engine, settings)
  unused_lib.warn_of_one_transformer(request, engine, settings)
  embeds = None
  if arrays is None:
    prompts = [prompts_lib.check(engine, prompt) for prompt in prompts]
  else:
    embeds = _check_embeds(request, engine, arrays)
  prompts_lib.expander(request, engine)
  target = modes.Target(
    mode, sizes, engine.autoencoder, engine.data.fps, model.sees
  )
  video = modes.condition(request, target)
  if video is not None and model.sees == 'frames':
    _warn_of_noise_levels(engine, request, mode)
  negative = _negative(request, engine, embeds, guided=settings.guidance != 1)
  prompts = tuple(prompt for prompt in prompts for _ in range(request.num))
  folder = request.prompt_embeds_cache
  unused = unused_lib.find(
    request, engine, settings, geometry=sizes, division=division
  )
  unused_lib.warn(request, unused)
  if arrays is None:
    prompts_lib.warn_of_words(engine, prompts)
  return Plan(
    request=request,
    mode=mode,
    prompts=prompts,
    original_prompts=prompts,
    prompt_embeds=embeds,
    negative_prompt=negative,
    seed=request.seed,
    seeds=seeds,
    geometry=sizes,
    settings=settings,
    conditioning=video,
    fps=fps,
    cache=prompt_embeds_lib.Cache(folder) if folder else None,
    layout=layout,
    division=division,
    unused=unused,
    images=_images(request) if model.image_width else (),
    references=(
      ()
      if request.reference_images is None
      else inputs.read_references(request.reference_images, sizes)
    ),
  )


def _check_mesh(
  request: Request, engine: Engine, sizes: geometry_lib.Geometry
) -> None:
  """Refuses a mesh that does not divide a network or the tokens."""
  if engine.devices == 1:
    return
  references = 0
  if request.reference_images is not None:
    references = len(inputs.read_references(request.reference_images, sizes))
  tokens = sizes.tokens // sizes.latent[0] * (sizes.latent[0] + references)
  mesh_lib.check_model(engine.networks.dit.config, tokens, engine.mesh)
  for root in engine.model.readers:
    engine.model.abstract(root)


def _images(request: Request) -> tuple[np.ndarray, ...]:
  """The first image and the last, if any, at their own sizes."""
  return tuple(
    inputs.read_original(getattr(request, name), name)
    for name in ('image', 'last_image')
    if getattr(request, name) is not None
  )


def expand(plan: Plan, engine: Engine) -> Plan:
  """Expands the prompts of a plan, which may send them to an endpoint."""
  if plan.prompt_embeds is not None:
    return plan
  prompts = prompts_lib.expand(plan.request, engine, plan.original_prompts)
  return dataclasses.replace(plan, prompts=tuple(prompts))


def metadata(plan: Plan, engine: Engine) -> dict[str, Any]:
  """Identity of a plan's videos: all settings that determine their frames.

  Settings without effect are None.
  """
  request, sizes = plan.request, plan.geometry
  settings = {
    name: None if name in plan.unused else describe(getattr(request, name))
    for name in sorted(FIELDS - UNIDENTIFYING)
  }
  if plan.division is not None and 'context_noise' not in plan.unused:
    settings['context_noise'] = plan.division.context_noise
  return settings | {
    'version': spacetime.__version__,
    'weights_hash': engine.model.weights_hash,
    'inputs_hash': _inputs_hash(plan),
    'mode': plan.mode,
    'frames': plan.frames,
    'clip_frames': sizes.frames,
    'height': sizes.height,
    'width': sizes.width,
    'fps': plan.fps,
    'sampling': dataclasses.asdict(plan.settings),
  }


def recorded(plan: Plan) -> dict[str, Any]:
  """Settings of a plan for sidecars that do not determine its videos."""
  return {
    name: None if name in plan.unused else describe(getattr(plan.request, name))
    for name in RECORDED
  }


def clip_identity(plan: Plan, clip: int) -> dict[str, Any]:
  """What distinguishes a video from the others of its plan.

  Prompts are those before expansion, which an endpoint may word differently at
  each call.
  """
  return {
    'original_prompt': '; '.join(plan.original_prompts[clip :: plan.clips])
    if plan.division
    else plan.original_prompts[clip],
    'number': clip,
  }


def _inputs_hash(plan: Plan) -> str | None:
  """Hash of the pixels and embeddings that a plan reads; None without any."""
  arrays = []
  if plan.conditioning is not None:
    video = plan.conditioning
    arrays += [video.before_FHWC, video.frames_FHWC, video.after_FHWC]
    arrays.append(video.cond_mask_FHW)
  if plan.prompt_embeds is not None:
    arrays += [*plan.prompt_embeds.text, *plan.prompt_embeds.negative]
  arrays += [*plan.images, *plan.references]
  if not arrays:
    return None
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(f'{array.shape} {array.dtype}'.encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()[:16]


def geometry(request: Request, engine: Engine) -> geometry_lib.Geometry:
  """Sizes of a request's clip, or of a chunk of a long video.

  Raises:
    SettingError: sizes that the model does not support.
  """
  size = parse_size(request)
  mode = modes.choose(request)
  fps = engine.data.fps if request.fps is None else request.fps
  data = engine.data
  default = {'one': 1, 'longest': data.world.longest, 'trained': data.frames}
  frames = request.frames
  if frames is None:
    frames = default[modes.MODES[mode].frames]
  if request.seconds is not None:
    step = engine.autoencoder.stride[0]
    longest = prompt_schedule.length(request.seconds, stride=step, fps=fps)
    frames = min(frames, longest)
  height, width = size or (data.height, data.width)
  clip = networks.clip_geometry(data, engine.networks, (frames, height, width))
  if size is None and engine.networks.dit.config.sees == 'channels':
    if request.image is not None:
      image_HWC = inputs.read_original(request.image, 'image')
      sides = inputs.size_of_area(*image_HWC.shape[:2], clip)
      return dataclasses.replace(clip, height=sides[0], width=sides[1])
  return clip


def _read_embeds(request: Request) -> tuple[list[str], dict[str, np.ndarray]]:
  """Names of the prompts of `prompt_embeds`, and its arrays."""
  source = request.prompt_embeds
  try:
    arrays = prompt_embeds_lib.load(source)
  except ValueError as e:
    raise SettingError(
      'prompt_embeds', describe(source), 'prompt embeddings', hint=str(e)
    ) from e
  label = describe(source)
  label = label.rpartition('/')[2] if isinstance(label, str) else 'embeds'
  count = len(arrays[prompt_embeds_lib.TEXT])
  return [f'{label}[{i}]' for i in range(count)], arrays


def _check_embeds(
  request: Request, engine: Engine, arrays: dict
) -> prompt_embeds_lib.PromptEmbeds:
  """The embeddings of `prompt_embeds` for each clip.

  Raises:
    SettingError: of other sizes than the model's.
  """
  rows, width = engine.networks.text_length, engine.networks.text.width
  count = len(arrays[prompt_embeds_lib.TEXT])
  for name, array in arrays.items():
    fits = array.shape[1] <= rows and array.shape[2] == width
    counts = (count,) if name == prompt_embeds_lib.TEXT else (1, count)
    if not fits or len(array) not in counts:
      raise SettingError(
        'prompt_embeds',
        describe(request.prompt_embeds),
        f'{name} of shape ({" or ".join(map(str, counts))}, at most {rows}, '
        f'{width}), the sizes of the text encoder, not {array.shape}',
      )
  negative = arrays.get(prompt_embeds_lib.NEGATIVE, ())
  embeds = prompt_embeds_lib.PromptEmbeds(
    tuple(arrays[prompt_embeds_lib.TEXT]),
    tuple(negative[i % len(negative)] for i in range(count))
    if len(negative)
    else (),
  )
  return embeds.repeated(request.num)


def _negative(
  request: Request, engine: Engine, embeds, *, guided: bool
) -> str | None:
  """The negative prompt to encode; None if there is none.

  Raises:
    SettingError: it is too long, or there are negative embeddings too.
  """
  if embeds and embeds.negative:
    if request.negative_prompt:
      raise SettingError(
        'negative_prompt',
        request.negative_prompt,
        f'none beside the {prompt_embeds_lib.NEGATIVE} of `prompt_embeds`',
      )
    return None
  prompts_lib.check_negative(engine, request.negative_prompt)
  return request.negative_prompt if guided else None


def _check_rate(request: Request, engine: Engine) -> None:
  """Refuses a rate at which the frames of a video would change their speed."""
  rate = engine.data.fps
  if request.fps is None or math.isclose(request.fps, rate):
    return
  for name in ('video', 'video2'):
    source = getattr(request, name)
    # Frames without a rate have whatever rate is asked for.
    if isinstance(source, (str, os.PathLike, Video)):
      raise SettingError(
        'fps',
        request.fps,
        f'{rate:g} with `{name}`, which is read at the rate of the model and '
        f'would play {request.fps / rate:g} times as fast',
        hint='leave it out',
      )


def _check_boundary(request: Request, engine: Engine) -> None:
  boundary = request.sampling.get('boundary')
  if boundary is not None and 'dit_2' not in engine.model.readers:
    raise SettingError(
      'boundary', boundary, 'None, since the model has one transformer'
    )


def _warn_of_noise_levels(engine: Engine, request: Request, mode: str) -> None:
  index = (engine.published or {}).get('index', {})
  if index and not index.get('expand_timesteps'):
    logging.warning(
      'mode=%s: %s was published with one noise level for a whole clip: unless '
      'it was fine-tuned with conditioning frames, it will not follow them',
      mode,
      request.checkpoint,
    )
