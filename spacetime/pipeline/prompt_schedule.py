"""How long a video is and what is told when: --seconds and --schedule."""

import math
import re
from typing import Any, Protocol

from spacetime.data import geometry
from spacetime.diffusion import rollout
from spacetime.pipeline import modes
from spacetime.pipeline import prompts as prompts_lib

# Modes whose window is the beginning of a longer video.
MODES = ('text', 'image', 'extend')
EXAMPLE = '--schedule="0: PROMPT; 10: PROMPT"'
_ENTRY = re.compile(r'\s*(\d+(?:\.\d+)?)\s*:(.*)', re.DOTALL)
# Of a prompt's own semicolons none is before a number and a colon.
_BORDER = re.compile(r';(?=\s*\d+(?:\.\d+)?\s*:)')


class Asked(prompts_lib.Asked, modes.Asked, Protocol):
  """The flags that are read here."""

  schedule: str | None
  context_noise: float | None
  decode_tiles: str | None
  batch: int


def parse(text: str) -> tuple[tuple[float, ...], tuple[str, ...]]:
  """'0: PROMPT; 10: PROMPT' -> the seconds and the prompts.

  Raises:
    ValueError: not of that form, or seconds that do not rise from 0.
  """
  seconds, prompts = [], []
  for part in _BORDER.split(text.strip().rstrip(';')):
    entry = _ENTRY.fullmatch(part)
    if not entry or not entry[2].strip():
      raise ValueError(
        f'--schedule: {part.strip()!r}: expected SECONDS: PROMPT, such as '
        f'{EXAMPLE}'
      )
    seconds.append(float(entry[1]))
    prompts.append(entry[2].strip())
  if seconds[0] != 0:
    raise ValueError(
      f'--schedule begins at {seconds[0]:g} seconds: expected 0, as in '
      f'{EXAMPLE}'
    )
  for before, after in zip(seconds, seconds[1:], strict=False):
    if after <= before:
      raise ValueError(
        f'--schedule: {after:g} seconds after {before:g}: expected times that '
        'rise'
      )
  return tuple(seconds), tuple(prompts)


def wanted(asked: Asked) -> tuple[list[str], dict | None]:
  """As wording.wanted; with --schedule its prompts.

  Raises:
    ValueError: see there, or a schedule and other prompts, or no --seconds.
  """
  if asked.schedule is None:
    return prompts_lib.wanted(asked)
  for flag in ('prompt', 'prompts_file', 'prompt_embeds'):
    if getattr(asked, flag) is not None:
      raise ValueError(f'--schedule and --{flag}: expected one of them')
  if asked.seconds is None:
    raise ValueError('--schedule: expected --seconds too')
  return list(parse(asked.schedule)[1]), None


def check(asked: Asked, mode: str, *, clips: int) -> None:
  """Refuses what a video in chunks cannot be.

  Raises:
    ValueError: it names the flag to change.
  """
  seconds, noise = asked.seconds, asked.context_noise
  if seconds is None:
    if noise is not None:
      raise ValueError(f'--context_noise={noise}: expected --seconds too')
    return
  if not (math.isfinite(seconds) and seconds > 0):
    raise ValueError(f'--seconds={seconds}: expected more than 0')
  if noise is not None and not 0 <= noise < 1:
    raise ValueError(f'--context_noise={noise}: expected 0 to less than 1')
  if mode not in MODES:
    raise ValueError(
      f'--seconds={seconds} with --mode={mode}: expected one of '
      f'{", ".join(MODES)}; make that first, and --mode=extend it'
    )
  if mode == 'image' and asked.image_at not in (None, 'first', '0'):
    raise ValueError(
      f'--seconds={seconds} with --image_at={asked.image_at}: expected first'
    )
  if asked.decode_tiles:
    raise ValueError(
      f'--seconds={seconds} with --decode_tiles: expected --decode_shards, or '
      'neither'
    )
  if clips > asked.batch:
    raise ValueError(
      f'--batch={asked.batch}: {clips} videos of --seconds are made side by '
      f'side; expected --batch={clips} or fewer videos'
    )


def length(seconds: float, *, stride: int, fps: float) -> int:
  """Frames of so many seconds: the nearest that the autoencoder has."""
  return 1 + stride * max(0, round((seconds * fps - 1) / stride))


def divide(
  asked: Asked, grid: geometry.Geometry, *, fps: float, noise: float
) -> rollout.Rollout | None:
  """The chunks of a video of --seconds; None without.

  Args:
    asked: checked.
    grid: of a chunk.
    fps: of the video.
    noise: of the context of a chunk, unless --context_noise says otherwise.

  Raises:
    ValueError: --given that a chunk cannot hold, or texts past the end.
  """
  if asked.seconds is None:
    return None
  step = grid.stride[0]
  frames = length(asked.seconds, stride=step, fps=fps)
  given = asked.given or modes.default_given('extend', grid)[0]
  if (given - 1) % step or not 1 <= given < max(grid.frames, 2):
    raise ValueError(
      f'--given={given}: a chunk of {grid.frames} frames is given whole latent '
      f'frames of what exists; expected {step}k+1 of at most '
      f'{max(1, grid.frames - step)}'
    )
  return rollout.Rollout(
    geometry.latent_frames(frames, stride=step),
    grid.latent[0],
    geometry.latent_frames(given, stride=step),
    _starts(asked, frames, step=step, fps=fps),
    noise if asked.context_noise is None else asked.context_noise,
  )


def _starts(asked: Asked, frames: int, *, step: int, fps: float):
  """The latent frame nearest to each time of the schedule."""
  if asked.schedule is None:
    return (0,)
  seconds, _ = parse(asked.schedule)
  if seconds[-1] * fps >= frames:
    raise ValueError(
      f'--schedule: {seconds[-1]:g} seconds in a video of {asked.seconds:g}: '
      'expected less; change --schedule or --seconds'
    )
  last = geometry.latent_frames(frames, stride=step) - 1
  starts = [min(last, max(0, 1 + round((s * fps - 1) / step))) for s in seconds]
  starts[0] = 0
  for i, (before, after) in enumerate(zip(starts, starts[1:], strict=False)):
    if after <= before:
      raise ValueError(
        f'--schedule: {seconds[i]:g} and {seconds[i + 1]:g} seconds are in one '
        f'latent frame: expected {step / fps:g} seconds between them, or more'
      )
  return tuple(starts)


def times(chunk: rollout.Chunk, *, step: int, before: int) -> list[int]:
  """First frame of a chunk in its file, and the one to stop before.

  Args:
    chunk: which.
    step: frames of a latent frame.
    before: frames of the file before the first chunk.
  """
  first, stop = (max(0, 1 + (n - 1) * step) for n in (chunk.start, chunk.stop))
  return [before + first, before + stop]


def told(
  division: rollout.Rollout,
  prompts: tuple[str, ...],
  *,
  clip: int,
  clips: int,
  seed: int,
  step: int,
  before: int,
) -> list[dict[str, Any]]:
  """What the sidecar says of each chunk of a clip: frames, prompt, seed."""
  return [
    {
      'chunk': chunk.index,
      'frames': times(chunk, step=step, before=before),
      'prompt': prompts[chunk.prompt * clips + clip],
      # Of the key: the seed, folded with the others (rollout.chunk_keys).
      'seed': [seed, clip, chunk.index][: 3 if chunk.index else 2],
    }
    for chunk in division.chunks
  ]
