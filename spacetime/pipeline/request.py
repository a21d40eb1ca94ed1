"""What is asked of `sample`, checked whole before a parameter is read."""

import dataclasses
import math

from absl import logging

from spacetime import sharding
from spacetime.checkpoint import load
from spacetime.config import networks
from spacetime.data import geometry
from spacetime.diffusion import conditioning_video, rollout
from spacetime.diffusion.settings import SamplingSettings
from spacetime.pipeline import (
  best_of_n,
  decode,
  modes,
  outputs,
  prompt_embeds_files,
  prompt_expansion,
  prompt_schedule,
)
from spacetime.pipeline import decode_tiles as decode_tiles_lib
from spacetime.pipeline import prompt_embeds as prompt_embeds_lib
from spacetime.pipeline import prompts as prompts_lib

# Flags that the config's sampling section has too.
SETTINGS = (
  *('steps', 'solver', 'shift', 'strength', 'guidance', 'guidance_2'),
  *('guidance_kind', 'first_block_cache', 'rope_scaling'),
  'temperature',
)
# Level of what a chunk is given of the one before: BUILD_NOTES.md.
CONTEXT_NOISE = 0.2
# Flags that name files which are read.
INPUTS = (
  *('image', 'video', 'video2', 'mask'),
  *('prompts_file', 'prompt_embeds', 'lora', 'lora_2'),
)


@dataclasses.dataclass(frozen=True)
class Request:
  """The flags of `sample`, by their names; None where one is not given."""

  prompt: str | None
  prompts_file: str | None
  prompt_embeds: str | None
  out: str | None
  checkpoint: str
  seed: int
  num: int
  steps: int | None
  solver: str | None
  shift: float | None
  guidance: float | None
  guidance_2: float | None
  negative_prompt: str
  embeddings_cache: str
  frames: int | None
  size: str | None
  image: str | None
  fps: float | None
  batch: int
  lora: str | None = None
  lora_2: str | None = None
  lora_strength: float = 1.0
  decode_tiles: str | None = None
  decode_overlap: int = decode_tiles_lib.OVERLAP
  decode_shards: int = 1
  mode: str | None = None
  image_at: str | None = None
  video: str | None = None
  video2: str | None = None
  mask: str | None = None
  strength: float | None = None
  given: int | None = None
  guidance_kind: str | None = None
  first_block_cache: float | None = None
  rope_scaling: str | None = None
  temperature: float | None = None
  candidates: int = 1
  expand_prompt: str | None = None
  expand_model: str = 'default'
  expand_timeout: float = 60.0
  seconds: float | None = None
  schedule: str | None = None
  context_noise: float | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run of sampling whose parts have been checked.

  Attributes:
    model: opened.
    prompts: what each clip is called; encoded unless there is `given`.
    asked: the same before prompts were expanded.
    given: features read from a file, or None.
    negative: what to encode and steer away from, or None.
    targets: what is written.
    grid, settings: sizes, and of the sampler.
    window: what is given, or None.
    mode: its name.
    fps: frames a second.
    cache: of prompts' features, or None.
    layout: of decoding.
    division: into chunks, of a video of --seconds; else None. Prompts are then
      of all clips for each text of the schedule.
  """

  model: load.Opened
  prompts: tuple[str, ...]
  asked: tuple[str, ...]
  given: prompt_embeds_lib.Texts | None
  negative: str | None
  targets: outputs.Targets
  grid: geometry.Geometry
  settings: SamplingSettings
  window: conditioning_video.ConditioningVideo | None
  mode: str
  fps: float
  cache: prompt_embeds_files.Cache | None
  layout: decode.Layout
  division: rollout.Rollout | None = None


def check(request: Request) -> Plan:
  """Refuses what cannot work; reads no parameters.

  Raises:
    ValueError: it names the flag to change.
  """
  _check_numbers(request)
  mode = modes.name(request)
  wanted, found = prompt_schedule.wanted(request)
  size = parse_size(request.size)
  clips = request.num * (1 if request.schedule else len(wanted))
  prompt_schedule.check(request, mode, clips=clips)
  # Sampling is not sharded here: every device would hold the same clip.
  mesh = sharding.single_device_mesh()
  model = load.open_model(request.checkpoint, mesh=mesh)
  model = _tuned(request, model)
  data = model.experiment.data
  fps = data.fps if request.fps is None else request.fps
  grid = _grid(request, model, size, mode=mode, fps=fps)
  division = prompt_schedule.divide(request, grid, fps=fps, noise=CONTEXT_NOISE)
  layout = decode.parse(
    request.decode_tiles,
    overlap=request.decode_overlap,
    devices=request.decode_shards,
    latent=grid.latent[1:],
  )
  settings = model.experiment.sampling.with_changes(
    **{name: getattr(request, name) for name in SETTINGS}
  )
  given = None
  if found:
    given = prompts_lib.given(request, model, found)
  else:
    wanted = [prompts_lib.prompt(model, prompt) for prompt in wanted]
  # An endpoint is asked below, when all else has been checked.
  prompt_expansion.expander(request, model)
  codec = model.networks.autoencoder
  window = modes.window(request, mode, grid, codec, fps=data.fps)
  if window:
    _warn_of_levels(request, model, mode)
  _check_candidates(request, mode, window)
  # Only now, since it makes the folder.
  targets = outputs.name(request.out, clips=clips)
  if request.seconds is not None:
    targets = outputs.streamed(targets, request.out)
  outputs.check(
    targets,
    frames=window.length if window else grid.frames,
    inputs={f'--{name}': getattr(request, name) for name in INPUTS},
  )
  folder = request.embeddings_cache
  told = wanted if found else prompt_expansion.expand(request, model, wanted)
  return Plan(
    model,
    tuple(prompt for prompt in told for _ in range(request.num)),
    tuple(prompt for prompt in wanted for _ in range(request.num)),
    given,
    prompts_lib.negative(
      request, model, given, guided=settings.guidance != 1.0
    ),
    targets,
    grid,
    settings,
    window,
    mode,
    fps,
    prompt_embeds_files.Cache(folder) if folder else None,
    layout,
    division,
  )


def parse_size(text: str | None) -> tuple[int, int] | None:
  """'WIDTHxHEIGHT' -> (height, width)."""
  if text is None:
    return None
  parts = text.lower().split('x')
  if len(parts) != 2 or not all(p.isdigit() for p in parts):
    raise ValueError(f'--size={text}: expected WIDTHxHEIGHT, such as 64x64')
  return int(parts[1]), int(parts[0])


def _check_numbers(request: Request) -> None:
  if not request.out:
    raise ValueError('--out: expected a file to write, such as video.mp4')
  for name in ('num', 'batch', 'candidates'):
    if getattr(request, name) < 1:
      raise ValueError(f'--{name}={getattr(request, name)}: expected 1 or more')
  if request.seed < 0:
    raise ValueError(f'--seed={request.seed}: expected 0 or more')
  if request.fps is not None and not 0 < request.fps <= 240:
    raise ValueError(f'--fps={request.fps}: expected more than 0, at most 240')


def _tuned(request: Request, model: load.Opened) -> load.Opened:
  """The model with the pairs of --lora and --lora_2."""
  strength = request.lora_strength
  if not math.isfinite(strength):
    raise ValueError(f'--lora_strength={strength}: expected a finite number')
  for flag, root in (('lora', 'dit'), ('lora_2', 'dit_2')):
    path = getattr(request, flag)
    if path is None:
      continue
    if root not in model.readers:
      raise ValueError(
        f'--{flag}={path}: the model has one transformer, not two; give --lora'
      )
    try:
      model = model.with_pairs(path, root=root, strength=strength)
    except ValueError as e:
      raise ValueError(f'--{flag}: {e}') from e
  return model


def _grid(
  request: Request, model, size, *, mode: str, fps: float
) -> geometry.Geometry:
  data = model.experiment.data
  frames = {'still': 1}.get(mode, data.frames)
  if mode in modes.BETWEEN:
    frames = data.world.longest
  if request.frames is not None:
    frames = request.frames
  if request.seconds is not None:
    step = model.networks.autoencoder.stride[0]
    frames = min(
      frames, prompt_schedule.length(request.seconds, stride=step, fps=fps)
    )
  height, width = size or (data.height, data.width)
  return networks.clip_geometry(data, model.networks, (frames, height, width))


def _check_candidates(request: Request, mode: str, window) -> None:
  if request.candidates == 1:
    return
  if request.seconds is not None:
    raise ValueError(
      f'--candidates={request.candidates} with --seconds: chunks are drawn '
      'once; leave one of them out'
    )
  if window is None or not best_of_n.of(window):
    raise ValueError(
      f'--candidates={request.candidates}: --mode={mode} has no join here to '
      'choose by; leave it out (--num draws several), or choose a mode that '
      'does, such as connect'
    )


def _warn_of_levels(request: Request, model, mode: str) -> None:
  published = model.experiment.published.get('index', {})
  if published and not published.get('expand_timesteps'):
    logging.warning(
      '--mode=%s: %s was published with one noise level for a whole clip: '
      'unless it was trained on with frames that were given, it will not '
      'follow what it is given',
      mode,
      request.checkpoint,
    )
