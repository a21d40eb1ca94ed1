"""Duration and prompt schedule of long videos, divided into chunks."""

import math
import re
from typing import Any

from spacetime import SettingError
from spacetime.data import geometry as geometry_lib
from spacetime.diffusion import rollout
from spacetime.pipeline import modes
from spacetime.pipeline.request import Request, describe

# Noise level of conditioning frames between chunks: BUILD_NOTES.md.
CONTEXT_NOISE = 0.2
EXAMPLE = '"0: PROMPT; 10: PROMPT"'
_ENTRY = re.compile(r'\s*(\d+(?:\.\d+)?)\s*:(.*)', re.DOTALL)
# Semicolons of a prompt itself are not followed by a number and a colon.
_BORDER = re.compile(r';(?=\s*\d+(?:\.\d+)?\s*:)')


def parse(schedule) -> tuple[tuple[float, ...], tuple[str, ...]]:
  """Start times in seconds and prompts of a schedule.

  Args:
    schedule: '0: PROMPT; 10: PROMPT', or pairs (seconds, prompt).

  Raises:
    SettingError: another form, or times that do not rise from 0.
  """
  pairs = _pairs(schedule) if isinstance(schedule, str) else list(schedule)
  try:
    seconds = tuple(float(time) for time, _ in pairs)
    prompts = tuple(prompt.strip() for _, prompt in pairs)
  except (AttributeError, TypeError, ValueError) as e:
    raise SettingError(
      'prompt_schedule', describe(schedule), f'pairs as in {EXAMPLE}'
    ) from e
  if not prompts or not all(prompts):
    raise SettingError(
      'prompt_schedule', describe(schedule), f'prompts, as in {EXAMPLE}'
    )
  if seconds[0] != 0:
    raise SettingError(
      'prompt_schedule',
      f'{seconds[0]:g}: ...',
      f'0 seconds first, as in {EXAMPLE}',
    )
  for before, after in zip(seconds, seconds[1:], strict=False):
    if after <= before:
      raise SettingError(
        'prompt_schedule',
        describe(schedule),
        f'times that rise, not {after:g} seconds after {before:g}',
      )
  return seconds, prompts


def _pairs(schedule: str) -> list[tuple[str, str]]:
  pairs = []
  for part in _BORDER.split(schedule.strip().rstrip(';')):
    entry = _ENTRY.fullmatch(part)
    if not entry or not entry[2].strip():
      raise SettingError(
        'prompt_schedule', part.strip(), f'SECONDS: PROMPT, such as {EXAMPLE}'
      )
    pairs.append((entry[1], entry[2]))
  return pairs


def read(request: Request) -> list[str] | None:
  """The prompts of the schedule; None if there is no schedule.

  Raises:
    SettingError: other prompts beside it, or no duration.
  """
  schedule = request.prompt_schedule
  if schedule is None:
    return None
  for name in ('prompt', 'prompts_file', 'prompt_embeds'):
    if getattr(request, name) is not None:
      raise SettingError(
        'prompt_schedule', describe(schedule), f'none beside `{name}`'
      )
  if request.seconds is None:
    raise SettingError('prompt_schedule', describe(schedule), '`seconds` too')
  return list(parse(schedule)[1])


def check(request: Request, mode: str, *, clips: int) -> None:
  """Refuses settings that a long video does not support.

  Raises:
    SettingError: it names the setting to change.
  """
  seconds, noise = request.seconds, request.context_noise
  if seconds is None:
    if noise is not None:
      raise SettingError('context_noise', noise, '`seconds` too')
    return
  if not (math.isfinite(seconds) and seconds > 0):
    raise SettingError('seconds', seconds, 'more than 0')
  if noise is not None and not 0 <= noise < 1:
    raise SettingError('context_noise', noise, '0 to less than 1')
  if not modes.MODES[mode].extendable:
    names = [name for name, entry in modes.MODES.items() if entry.extendable]
    raise SettingError(
      'mode',
      mode,
      f'one of {", ".join(names)} with `seconds`',
      hint='generate that first, and extend it with `mode`=extend',
    )
  if mode == 'image' and request.image_at not in (None, 'first', '0', 0):
    raise SettingError('image_at', request.image_at, 'first with `seconds`')
  if request.last_image is not None:
    raise SettingError(
      'last_image',
      describe(request.last_image),
      'none with `seconds`',
      hint='generate a clip with it, and lead to it with `mode`=connect',
    )
  if request.decode_tiles:
    raise SettingError(
      'decode_tiles',
      request.decode_tiles,
      'none with `seconds`',
      hint='`decode_shards` divides frames too',
    )
  if clips > request.batch_size:
    raise SettingError(
      'batch_size',
      request.batch_size,
      f'{clips} or more, or fewer videos: those of `seconds` are generated '
      'side by side',
    )


def length(seconds: float, *, stride: int, fps: float) -> int:
  """Frames of a duration: the nearest length that the autoencoder supports."""
  return 1 + stride * max(0, round((seconds * fps - 1) / stride))


def divide(
  request: Request, geometry: geometry_lib.Geometry, *, fps: float, sees: str
) -> rollout.Rollout | None:
  """The chunks of a long video; None without `seconds`.

  Args:
    request: a request that `check` has accepted.
    geometry: sizes of a chunk.
    fps: frames a second of the video.
    sees: how the model sees known pixels, see DiTConfig.sees.

  Raises:
    SettingError: `cond_frames` that a chunk cannot hold, or prompts past the
      end.
  """
  if request.seconds is None:
    return None
  step = geometry.stride[0]
  frames = length(request.seconds, stride=step, fps=fps)
  cond_frames = request.cond_frames
  if cond_frames is None and sees == 'channels':
    cond_frames = 1
  elif cond_frames is None:
    cond_frames = modes.default_cond_frames('extend', geometry)[0]
  if (cond_frames - 1) % step or not (
    1 <= cond_frames < max(geometry.frames, 2)
  ):
    raise SettingError(
      'cond_frames',
      cond_frames,
      f'{step}k+1, at most {max(1, geometry.frames - step)}: a chunk of '
      f'{geometry.frames} frames is conditioned on whole latent frames',
    )
  noise = request.context_noise
  if noise is None:
    noise = CONTEXT_NOISE if sees == 'frames' else 0.0
  return rollout.Rollout(
    geometry_lib.latent_frames(frames, stride=step),
    geometry.latent[0],
    geometry_lib.latent_frames(cond_frames, stride=step),
    _starts(request, frames, step=step, fps=fps),
    noise,
  )


def _starts(request: Request, frames: int, *, step: int, fps: float):
  """The latent frame nearest to each start time of the schedule."""
  if request.prompt_schedule is None:
    return (0,)
  seconds, _ = parse(request.prompt_schedule)
  schedule = describe(request.prompt_schedule)
  if seconds[-1] * fps >= frames:
    raise SettingError(
      'prompt_schedule',
      schedule,
      f'times below the {request.seconds:g} seconds of the video, not '
      f'{seconds[-1]:g}',
    )
  last = geometry_lib.latent_frames(frames, stride=step) - 1
  starts = [min(last, max(0, 1 + round((s * fps - 1) / step))) for s in seconds]
  starts[0] = 0
  for i, (before, after) in enumerate(zip(starts, starts[1:], strict=False)):
    if after <= before:
      raise SettingError(
        'prompt_schedule',
        schedule,
        f'{step / fps:g} seconds or more between times: {seconds[i]:g} and '
        f'{seconds[i + 1]:g} are in one latent frame',
      )
  return tuple(starts)


def frame_range(chunk: rollout.Chunk, *, step: int, before: int) -> list[int]:
  """First frame of a chunk in its video, and the one past its last.

  Args:
    chunk: chunk of the rollout.
    step: frames per latent frame.
    before: frames of the video before the first chunk.
  """
  first, stop = (max(0, 1 + (n - 1) * step) for n in (chunk.start, chunk.stop))
  return [before + first, before + stop]


def metadata(
  division: rollout.Rollout,
  prompts: tuple[str, ...],
  *,
  clip: int,
  clips: int,
  seed: list[int],
  step: int,
  before: int,
) -> list[dict[str, Any]]:
  """Frames, prompt and seed of each chunk of a clip, for the sidecar."""
  return [
    {
      'chunk': chunk.index,
      'frames': frame_range(chunk, step=step, before=before),
      'prompt': prompts[chunk.prompt * clips + clip],
      # The random key: seed, clip and chunk, folded.
      'seed': seed + [chunk.index] * bool(chunk.index),
    }
    for chunk in division.chunks
  ]
