"""Sampling requests: every setting of a video, the same for flags and Python.

A field is one setting: its name is the flag and the keyword, its metadata the
help and the group of the flag. Settings of the solver and of guidance are
fields of SamplingSettings and stand in `Request.sampling`. Imports no JAX, so
that `--help` is quick.
"""

import dataclasses
import difflib
import math
import numbers
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from spacetime import SettingError
from spacetime.diffusion.settings import check_types
from spacetime.pipeline import aliases

PROMPT_EMBEDS_CACHE = '~/.cache/spacetime/embeddings'
DECODE_OVERLAP = 8
# Largest values of settings that count: more are a slip of the keyboard.
MOST = {'num': 10_000, 'batch_size': 10_000, 'best_of': 1_000}
CLIPS = 10_000  # videos of one request
LONGEST = 86_400  # seconds of a video, a day
SEEDS = 2**63  # seeds are smaller
LORAS = 'paths, each with a finite strength or none, as A.safetensors:0.8,B'
# A path, an array (F, H, W, 3) or (H, W, 3), a PIL image or a Video.
Source = Any


def _field(default, group: str, text: str, *, kind=str, example=None):
  """A setting that is also a flag of the type `kind`."""
  metadata = {'help': text, 'group': group, 'type': kind}
  if example is not None:
    metadata['example'] = example
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Request:
  """Settings of one call, None where the checkpoint or the mode decides.

  Attributes:
    sampling: settings of the solver and of guidance, by the names of
      SamplingSettings.

  Raises:
    SettingError: a number out of its range.
  """

  prompt: str | Sequence[str] | None = _field(
    None,
    'input',
    'Text that describes the video.',
    example='a red 3 moves to the right',
  )
  prompts_file: str | None = _field(
    None,
    'input',
    'Text file with a prompt on each line, in place of `prompt`.',
    example='prompts.txt',
  )
  prompt_embeds: Source | None = _field(
    None,
    'input',
    'safetensors file with prompt_embeds (n, S, Y) and, optionally, '
    'negative_prompt_embeds, in place of `prompt`.',
    example='embeds.safetensors',
  )
  negative_prompt: str = _field(
    '',
    'input',
    'Text that the video should not show; used with guidance.',
    example='blurry',
  )
  mode: str | None = _field(
    None,
    'input',
    'Conditioning mode, listed above. The default is image with `image`, '
    'else text.',
    example='extend',
  )
  image: Source | None = _field(
    None,
    'input',
    'Image file that becomes one frame of the video; it is cropped to the '
    "video's proportions.",
    example='first.png',
  )
  image_at: str | int | None = _field(
    None,
    'input',
    'Frame that `image` becomes: first (the default), last, or a number from '
    '0.',
    example='last',
  )
  last_image: Source | None = _field(
    None,
    'input',
    'Image file that becomes the last frame, beside `image` as the first.',
    example='last.png',
  )
  reference_images: Source | None = _field(
    None,
    'input',
    'Image files of things that the video should show, with commas between '
    'them, for VACE models.',
    example='dog.png,hat.png',
  )
  control_scale: float | None = _field(
    None,
    'guidance',
    'Factor of what the control video, known pixels and reference images add, '
    'for VACE models; the default is 1.',
    kind=float,
    example='0.8',
  )
  video: Source | None = _field(
    None,
    'input',
    'Video file to extend, loop, connect, inpaint, outpaint, edit or be '
    'controlled by.',
    example='clip.mp4',
  )
  video2: Source | None = _field(
    None,
    'input',
    'Video file that `video` is connected to.',
    example='next.mp4',
  )
  mask: Source | None = _field(
    None,
    'input',
    'Image file as large as `video`: light pixels are regenerated, black '
    'pixels stay.',
    example='mask.png',
  )
  cond_frames: int | None = _field(
    None,
    'input',
    'Conditioning frames: frames of the video that the new ones continue or '
    'lead to; in mode edit, last frames that stay. The default is about half '
    'of `frames`.',
    kind=int,
    example='9',
  )
  expand_prompt: str | None = _field(
    None,
    'input',
    "Rewrites each prompt at length: 'grammar' (the digits world's own) or the "
    "URL of a chat endpoint in OpenAI's format, with its key in "
    'SPACETIME_API_KEY.',
    example='grammar',
  )
  expand_model: str = _field(
    'default', 'input', 'Model name that is sent to the chat endpoint.'
  )
  expand_timeout: float = _field(
    60.0, 'input', 'Seconds to wait for each reply of the endpoint.', kind=float
  )
  checkpoint: str = _field(
    'digits',
    'input',
    'Model: a bundled name, a run, a weights folder, a diffusers folder, a '
    'name on the Hub or the file of a published transformer.',
    example='runs/digits',
  )
  transformer: str | None = _field(
    None,
    'input',
    'File of a published transformer, as ComfyUI has them, in place of that of '
    '`checkpoint`; of two, the one of the higher noise levels.',
    example='wan2.1_t2v_1.3B_bf16.safetensors',
  )
  transformer_2: str | None = _field(
    None,
    'input',
    'File of the second of two transformers, of the lower noise levels.',
  )
  vae: str | None = _field(
    None,
    'input',
    'File of a published autoencoder.',
    example='wan_2.1_vae.safetensors',
  )
  text_encoder: str | None = _field(
    None,
    'input',
    'File of a published text encoder.',
    example='umt5_xxl_fp8_e4m3fn_scaled.safetensors',
  )
  image_encoder: str | None = _field(
    None,
    'input',
    'File of the published CLIP image encoder, of image-to-video models of Wan '
    '2.1.',
    example='clip_vision_h.safetensors',
  )
  tokenizer: str | None = _field(
    None,
    'input',
    'sentencepiece model or tokenizer.json, if neither the text encoder nor '
    '`checkpoint` has one.',
    example='spiece.model',
  )
  lora: Source | None = _field(
    None,
    'input',
    'LoRA weights: a file of any program or a folder with one; several are '
    'separated by commas, each with its strength, if not 1, behind a colon.',
    example='style.safetensors:0.8,detail.safetensors',
  )
  lora_2: Source | None = _field(
    None,
    'input',
    'LoRA weights of the second of two transformers. A file with weights for '
    'both belongs to `lora`.',
  )
  lora_strength: float = _field(
    1.0, 'input', 'Factor on the strengths of all LoRA weights.', kind=float
  )
  frames: int | None = _field(
    None,
    'length',
    'Frames of the clip, or of a chunk of a longer video; the default is the '
    "checkpoint's, in modes loop and connect the longest of its training.",
    kind=int,
    example='33',
  )
  size: str | tuple[int, int] | None = _field(
    None,
    'length',
    "WIDTHxHEIGHT of the video in pixels; the default is the checkpoint's.",
    example='96x48',
  )
  fps: float | None = _field(
    None,
    'length',
    "Frames a second of the file; the default is the checkpoint's, and no "
    'other works with `video`, whose speed would change.',
    kind=float,
    example='8',
  )
  seconds: float | None = _field(
    None,
    'length',
    'Duration of a long video. It is generated in chunks of `frames`, each '
    'conditioned on the last `cond_frames` of the one before, and written to '
    'FILE.part.mp4 chunk by chunk; after an interruption the same command '
    'resumes.',
    kind=float,
    example='60',
  )
  prompt_schedule: str | Sequence | None = _field(
    None,
    'length',
    'Prompts that change during a long video, in place of `prompt`.',
    example='"0: a red 0 bounces; 10: a blue 7 stands still"',
  )
  context_noise: float | None = _field(
    None,
    'length',
    'Noise level of the frames that a chunk of a long video is conditioned '
    'on, against drift: 0 (clean) to less than 1; the default is 0.2.',
    kind=float,
    example='0.2',
  )
  seed: int = _field(
    0,
    'solver',
    'Random seed; the same seed gives the same video.',
    kind=int,
    example='7',
  )
  seeds: str | Sequence[int] | None = _field(
    None,
    'solver',
    'A seed for each video, in place of `seed`; a video does not depend on the '
    'other seeds.',
    example='1,2,3',
  )
  preset: str | None = _field(
    None,
    'solver',
    'Settings of distilled models: lightx2v, fastwan or rcm, at 1 to 4 steps '
    'without guidance; other flags override them.',
    example='lightx2v',
  )
  num: int = _field(
    1, 'solver', 'Videos of each prompt.', kind=int, example='4'
  )
  best_of: int = _field(
    1,
    'solver',
    'Number of candidates of each video, or of each chunk of a long one, of '
    'which the one is kept whose motion changes least: where new frames meet '
    'conditioning frames (extend, loop, connect, later chunks), else '
    'throughout. Of still images it is the sharpest.',
    kind=int,
    example='8',
  )
  batch_size: int = _field(
    16, 'memory', 'Videos that are generated at once.', kind=int, example='4'
  )
  decode_tiles: str | None = _field(
    None,
    'memory',
    'COLUMNSxROWS of tiles that each frame is decoded in, for frames that do '
    'not fit in memory; tiles are blended, but seams may be visible.',
    example='2x2',
  )
  decode_overlap: int = _field(
    DECODE_OVERLAP,
    'memory',
    'Latent cells that neighbouring tiles share.',
    kind=int,
  )
  decode_shards: int = _field(
    1,
    'memory',
    'Devices that each frame is decoded on, without seams.',
    kind=int,
    example='2',
  )
  prompt_embeds_cache: str = _field(
    PROMPT_EMBEDS_CACHE,
    'memory',
    'Folder that keeps the embeddings of prompts, so that a second run does '
    'not read the text encoder of a published model; empty keeps none.',
  )
  out: str | None = _field(
    None,
    'output',
    'File to write: .mp4, .webm, .gif or .png, or FOLDER/ for frames as PNG; '
    'a.png of several frames is the folder a/. A JSON sidecar beside it '
    'records every setting. Videos that the same request wrote are kept.',
    example='video.mp4',
  )
  overwrite: bool = _field(
    False,
    'output',
    'Replace files of `out` that exist, whatever they are of.',
    kind=bool,
  )
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name, most in MOST.items():
      value = getattr(self, name)
      if not isinstance(value, numbers.Integral) or not 1 <= value <= most:
        raise SettingError(name, value, f'1 or more, at most {most:,}')
    _check_seed('seed', self.seed)
    for name, most in (('fps', 240), ('seconds', LONGEST)):
      value = getattr(self, name)
      if value is None:
        continue
      if not isinstance(value, numbers.Real) or not 0 < value <= most:
        raise SettingError(name, value, f'more than 0, at most {most:,}')
    for name in ('frames', 'cond_frames', 'decode_overlap', 'decode_shards'):
      value = getattr(self, name)
      if value is not None and not isinstance(value, numbers.Integral):
        raise SettingError(name, describe(value), 'a whole number')
    check_types(self)
    check_strength(self.lora_strength)
    scale = self.control_scale
    if scale is not None and not (math.isfinite(scale) and scale >= 0):
      raise SettingError('control_scale', scale, 'a finite number, 0 or more')

  @property
  def strength(self) -> float | None:
    """Noise level that an edit starts from, a setting of the sampler."""
    return self.sampling.get('strength')


# Files of a published model's networks.
FILES = (
  *('transformer', 'transformer_2', 'vae', 'text_encoder', 'image_encoder'),
  'tokenizer',
)
FIELDS = {field.name for field in dataclasses.fields(Request)} - {'sampling'}


def from_keywords(sampling: Sequence[str], /, **values) -> Request:
  """A request from keywords of Python.

  Args:
    sampling: names of the settings of the sampler.
    **values: fields of Request or sampling settings, in diffusers' spelling
      too; None leaves a default.

  Raises:
    SettingError: no such setting, or one that is set twice.
  """
  values = {k: v for k, v in values.items() if v is not None}
  fields, settings = {}, {}
  for name, value in aliases.renamed(values).items():
    if name in FIELDS:
      fields[name] = value
    elif name in sampling:
      settings[name] = value
    else:
      known = [*FIELDS, *sampling, *aliases.ALIASES, *aliases.SIZE]
      near = difflib.get_close_matches(name, known, n=1)
      hint = f'did you mean `{near[0]}`?' if near else ''
      raise SettingError(name, describe(value), 'a known setting', hint=hint)
  return Request(**fields, sampling=settings)


def parse_size(request: Request) -> tuple[int, int] | None:
  """(height, width) in pixels; None where the checkpoint decides.

  Raises:
    SettingError: a size of another form.
  """
  size = request.size
  if size is None:
    return None
  if isinstance(size, str):
    size = size.lower().split('x')
  try:
    width, height = map(_integer, size)
  except (TypeError, ValueError) as e:
    raise SettingError(
      'size', request.size, 'WIDTHxHEIGHT, such as 64x64'
    ) from e
  return height, width


def parse_seeds(request: Request) -> tuple[int, ...] | None:
  """The seeds of the videos; None where they count from `seed`.

  Raises:
    SettingError: no whole numbers of 0 or more.
  """
  seeds = request.seeds
  if seeds is None:
    return None
  if isinstance(seeds, str):
    seeds = seeds.split(',')
  try:
    seeds = tuple(map(_integer, seeds))
  except (TypeError, ValueError) as e:
    raise SettingError(
      'seeds', request.seeds, 'whole numbers, such as 1,2,3'
    ) from e
  if not seeds:
    raise SettingError('seeds', describe(request.seeds), 'one or more')
  for seed in seeds:
    _check_seed('seeds', seed)
  return seeds


def _integer(value) -> int:
  """A whole number, of a text or itself; no other number is rounded."""
  if not isinstance(value, (str, numbers.Integral)):
    raise TypeError(value)
  return int(value)


def _check_seed(name: str, seed: int) -> None:
  if not isinstance(seed, numbers.Integral) or not 0 <= seed < SEEDS:
    raise SettingError(name, seed, f'0 or more, at most {SEEDS - 1}')


def check_strength(value) -> None:
  """Refuses a factor on LoRA weights that is no finite number."""
  if not _is_number(value) or not math.isfinite(value):
    raise SettingError('lora_strength', describe(value), 'a finite number')


def parse_loras(name: str, value) -> tuple[tuple[str, float], ...]:
  """(path, strength) of each file of LoRA weights.

  Args:
    name: `lora` or `lora_2`.
    value: None, a path, 'PATH:STRENGTH,PATH', or a list of paths and of pairs
      (path, strength).

  Raises:
    SettingError: an empty path, or a strength that is not a finite number.
  """
  if value is None:
    return ()
  if isinstance(value, os.PathLike):
    value = [os.fspath(value)]
  if isinstance(value, str):
    value = split_paths(value)
  if isinstance(value, tuple) and len(value) == 2 and _is_number(value[1]):
    value = [value]
  if isinstance(value, Mapping) or not isinstance(value, Iterable):
    raise SettingError(name, describe(value), LORAS)
  pairs = []
  for item in value:
    if isinstance(item, (tuple, list)) and len(item) != 2:
      raise SettingError(name, describe(value), LORAS)
    path, strength = item if isinstance(item, (tuple, list)) else (item, 1.0)
    is_path = isinstance(path, (str, os.PathLike))
    path = os.fspath(path).strip() if is_path else ''
    if not os.path.exists(path):
      path, strength = _strength(path, strength)
      head, colon, _ = path.rpartition(':')
      if colon and not os.path.exists(path) and os.path.exists(head):
        raise SettingError(name, describe(value), LORAS)  # no strength
    try:
      strength = float(strength)
    except (TypeError, ValueError):
      strength = math.nan
    if not path or not math.isfinite(strength):
      raise SettingError(name, describe(value), LORAS)
    pairs.append((path, strength))
  return tuple(pairs)


def split_paths(text: str) -> list[str]:
  """Items between commas; a comma in the name of a file that exists, with or
  without a strength behind it, is no end of an item."""
  parts, items = text.split(','), []
  while parts:
    for count in range(len(parts), 0, -1):
      item = ','.join(parts[:count]).strip()
      if count == 1 or any(map(os.path.exists, (item, _strength(item)[0]))):
        break
    items.append(item)
    parts = parts[count:]
  return items


def _strength(path: str, default=1.0) -> tuple[str, str | float]:
  """(path, strength) of 'PATH:STRENGTH'."""
  number = r'[-+]?(?:[\d.]+(?:e[-+]?\d+)?|nan|inf(?:inity)?)'
  mark = re.fullmatch(rf'(.*?)\s*:\s*({number})', path, re.IGNORECASE)
  return (mark[1], mark[2]) if mark else (path, default)


def _is_number(value) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def describe(value) -> Any:
  """A value for messages and sidecars; arrays are shown by their shape."""
  if value is None or isinstance(value, (str, int, float)):
    return value
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, (list, tuple)):
    return [describe(item) for item in value]
  shape = getattr(value, 'shape', None) or getattr(value, 'size', None)
  return f'{type(value).__name__} {shape}' if shape else type(value).__name__
