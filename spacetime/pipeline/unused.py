"""Settings of a request that have no effect, and why; and sizes beyond
training."""

import dataclasses
import itertools
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping

import jax

from spacetime import SettingError, SettingWarning
from spacetime.data import geometry as geometry_lib
from spacetime.diffusion import rollout
from spacetime.diffusion.settings import PRESETS, SamplingSettings
from spacetime.pipeline import prompts as prompts_lib
from spacetime.pipeline.engine import Engine
from spacetime.pipeline.request import Request, describe, parse_loras

TOKENS = 2**20  # most tokens of a clip, 14 times those of 14B at 720p
START = 0.9  # least share of the first noise level that timesteps begin at
LARGER = 4  # times the area of training, above which a size is warned of
# Names of weights that were distilled to few steps.
FEW_STEPS = re.compile(
  r'lightx2v|lightning|fastwan|causvid|self[-_ ]?forcing|turbodiffusion'
  r'|step[-_ ]?distill|(?<![a-z0-9])(?:rcm|[1-8][-_ ]?steps?)(?![a-z])',
  re.IGNORECASE,
)
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Request)}


def find(
  request: Request,
  engine: Engine,
  settings: SamplingSettings,
  *,
  geometry: geometry_lib.Geometry,
  division: rollout.Rollout | None,
) -> Mapping[str, str]:
  """Settings that are set and have no effect, with the reason.

  A setting that has its default value is not set.

  Args:
    request: the request.
    engine: the model.
    settings: resolved settings of the sampler.
    geometry: sizes of the clip.
    division: chunks of a long video; None for a clip.
  """
  trained = engine.settings()
  reasons = dict(
    itertools.chain(
      _of_sampler(settings, preset=request.preset),
      _of_experts(request, engine, settings),
      _of_request(request, engine),
      _of_length(request, engine, geometry, division),
    )
  )
  return {
    name: reason
    for name, reason in reasons.items()
    if (
      request.sampling[name] != getattr(trained, name)
      if name in request.sampling
      else getattr(request, name, None) != DEFAULTS.get(name)
    )
  }


def warn(request: Request, reasons: Mapping[str, str]) -> None:
  """Warns of each setting without effect."""
  for name, reason in reasons.items():
    value = request.sampling.get(name, getattr(request, name, None))
    warnings.warn(
      SettingWarning(name, describe(value), f'no effect, since {reason}'),
      stacklevel=2,
    )


def _of_sampler(
  settings: SamplingSettings, *, preset: str | None
) -> Iterator[tuple[str, str]]:
  schedules = {settings.schedule, PRESETS.get(preset, {}).get('schedule')}
  if settings.timesteps is not None and 'rounded' not in schedules:
    yield 'schedule', '`timesteps` replace it'
  if settings.guidance == 1:
    for name in ('negative_prompt', 'interval', 'guidance_kind'):
      yield name, '`guidance` is 1'
  if settings.guidance == 1 or settings.guidance_kind != 'cfg_zero':
    yield 'zero_steps', '`guidance_kind` is not cfg_zero, or `guidance` is 1'
  elif settings.strength != 1:
    yield 'zero_steps', '`strength` is not 1: an edit keeps its first steps'
  if settings.guidance == 1 or settings.guidance_kind != 'apg':
    for name in ('momentum', 'norm_threshold', 'eta'):
      yield name, '`guidance_kind` is not apg, or `guidance` is 1'
  if not settings.skip_layers:
    for name in ('skip_layer_scale', 'skip_layer_interval'):
      yield name, '`skip_layers` names none'


def _of_experts(
  request: Request, engine: Engine, settings: SamplingSettings
) -> Iterator[tuple[str, str]]:
  if settings.boundary is None:
    return
  schedule = settings.make_schedule()
  first = schedule.steps_from(settings.boundary)
  reason = f'every step is {{}} the `boundary` {settings.boundary:g}'
  if first == schedule.steps:
    for name in ('lora_2', 'guidance_2'):
      yield name, reason.format('above')
  if first == 0 and 'dit_2' not in engine.model.adapters:
    yield 'lora', reason.format('below')


def _of_request(request: Request, engine: Engine) -> Iterator[tuple[str, str]]:
  if request.expand_prompt in (None, '', prompts_lib.GRAMMAR):
    for name in ('expand_model', 'expand_timeout'):
      yield name, '`expand_prompt` is no endpoint'
  if not request.lora and not request.lora_2:
    yield 'lora_strength', 'there is no `lora`'
  if request.decode_tiles is None:
    yield 'decode_overlap', 'there are no `decode_tiles`'
  if request.prompt_embeds_cache and engine.published is None:
    yield 'prompt_embeds_cache', 'prompts of this model are encoded at once'
  if request.seeds is not None:
    yield 'seed', '`seeds` has a seed for each video'


def _of_length(
  request: Request,
  engine: Engine,
  geometry: geometry_lib.Geometry,
  division: rollout.Rollout | None,
) -> Iterator[tuple[str, str]]:
  longest = engine.data.max_frames
  if geometry.frames <= longest:
    reason = f'the clip is not longer than the {longest} frames of training'
    yield 'rope_scaling', reason
  if division is None:
    return
  if len(division.chunks) == 1:
    reason = f'{request.seconds:g} `seconds` are one chunk'
    yield 'context_noise', reason
    if request.video is None:
      yield 'cond_frames', reason
  if request.frames and request.frames > geometry.frames:
    yield (
      'frames',
      f'{request.seconds:g} `seconds` are {geometry.frames} frames',
    )


def warn_of_one_transformer(
  request: Request, engine: Engine, settings: SamplingSettings
) -> None:
  """Warns of LoRA weights for one of two transformers that both have steps."""
  adapters = engine.model.adapters
  if settings.boundary is None or len(adapters) != 1:
    return
  schedule = settings.make_schedule()
  if schedule.steps_from(settings.boundary) in (0, schedule.steps):
    return
  (root,) = adapters
  name, other, below = 'lora', 'lora_2', 'above'
  if root == 'dit_2':
    name, other, below = 'lora_2', 'lora', 'below'
  warnings.warn(
    SettingWarning(
      name,
      describe(getattr(request, name)),
      f'changes the transformer of noise levels {below} the `boundary` '
      f'{settings.boundary:g} alone; set `{other}` for the other',
    ),
    stacklevel=2,
  )


def warn_of_guidance(engine: Engine, settings: SamplingSettings) -> None:
  """Warns of guidance of a flow map whose weights include guidance."""
  experiment = engine.model.experiment
  trained = experiment.flow_map.guidance
  if not engine.networks.dit.config.flow_map or 1 in (
    trained,
    settings.guidance,
  ):
    return
  warnings.warn(
    SettingWarning(
      'guidance',
      settings.guidance,
      f'guides twice, since this flow map has guidance {trained:g} in its '
      'weights: expected 1, which takes half the time',
    ),
    stacklevel=2,
  )


def warn_of_preset(
  request: Request, engine: Engine, settings: SamplingSettings
) -> None:
  """Warns of presets of other weights, and of few-step weights without one."""
  preset = request.preset
  if preset is None:
    is_flow_map = engine.networks.dit.config.flow_map > 0
    if engine.published and settings.timesteps is None and not is_flow_map:
      _warn_of_few_steps(request)
    return
  if engine.published is None:
    warnings.warn(
      SettingWarning(
        'preset',
        preset,
        'has the noise levels of published weights that were distilled to few '
        'steps, and this model was not',
      ),
      stacklevel=3,
    )
  elif settings.guidance != PRESETS[preset]['guidance']:
    warnings.warn(
      SettingWarning(
        'guidance',
        settings.guidance,
        f'guides twice, since weights of `preset`={preset} were distilled with '
        'guidance: expected 1, which takes half the time',
      ),
      stacklevel=3,
    )


def _warn_of_few_steps(request: Request) -> None:
  """Warns of files that are named after few-step weights."""
  for name in ('checkpoint', 'transformer', 'lora', 'lora_2'):
    value = getattr(request, name)
    if name.startswith('lora'):
      paths = [path for path, _ in parse_loras(name, value)]
    else:
      paths = [os.fspath(value)] if value else []
    for path in paths:
      if FEW_STEPS.search(os.path.basename(path.rstrip('/'))):
        warnings.warn(
          SettingWarning(
            name,
            path,
            'the file is named after weights that were distilled to few steps, '
            'at noise levels of their own: set `preset`, such as lightx2v, or '
            '`timesteps`',
          ),
          stacklevel=4,
        )


def warn_of_control(request: Request) -> None:
  """Warns of a control that is switched off."""
  if request.control_scale == 0:
    warnings.warn(
      SettingWarning(
        'control_scale',
        request.control_scale,
        'the video, images and masks that the model is given have no effect',
      ),
      stacklevel=2,
    )


def warn_of_start(settings: SamplingSettings) -> None:
  """Warns of timesteps that begin far below the noise that latents begin as."""
  if settings.timesteps is None:
    return
  # Steps that CFG-Zero* leaves out change no latents.
  first = settings.with_changes(guidance_kind='cfg').make_schedule().sigmas[0]
  if first < START * settings.strength:
    warnings.warn(
      SettingWarning(
        'timesteps',
        settings.timesteps,
        f'the first is the noise level {first:.2f}, but latents begin at '
        f'{settings.strength:g}: expected 1000 or a little less',
      ),
      stacklevel=2,
    )


def check_sizes(
  engine: Engine, geometry: geometry_lib.Geometry, settings: SamplingSettings
) -> None:
  """Refuses clips that cannot be computed; warns of those beyond training.

  Raises:
    SettingError: more tokens than any device holds, or than this machine.
  """
  data, config = engine.data, engine.networks.dit.config
  size = f'{geometry.width}x{geometry.height}'
  tokens = math.prod(geometry.latent) // math.prod(geometry.patch)
  if tokens > TOKENS:
    raise SettingError(
      'frames',
      geometry.frames,
      f'a clip of at most {TOKENS:,} tokens, not the {tokens:,} of '
      f'{geometry.frames} frames of {size}',
      hint='reduce `frames` or `size`, or set `seconds` for a long video',
    )
  # Attention on a CPU writes the logits of all heads, in float32.
  needed = 4 * config.heads * tokens**2
  if jax.default_backend() == 'cpu' and needed > _memory():
    raise SettingError(
      'size',
      size,
      f'a smaller one on a CPU: the attention of {tokens:,} tokens takes '
      f'{needed / 2**30:,.0f} GiB of memory, and there are '
      f'{_memory() / 2**30:,.0f}',
      hint='reduce `frames` or `size`',
    )
  if geometry.frames > data.max_frames and settings.rope_scaling == 'none':
    warnings.warn(
      SettingWarning(
        'frames',
        geometry.frames,
        f'the model was trained on at most {data.max_frames} frames; longer '
        'clips repeat themselves or dissolve: `rope_scaling` may help, and '
        '`seconds` generates long videos in chunks',
      ),
      stacklevel=2,
    )
  area = max(height * width for _, height, width in data.shapes)
  if geometry.height * geometry.width > LARGER * area:
    warnings.warn(
      SettingWarning(
        'size',
        size,
        f'{geometry.height * geometry.width / area:.0f} times the largest area '
        'that the model was trained on',
      ),
      stacklevel=2,
    )


def _memory() -> int:
  """Bytes of memory of this machine."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
