"""Samples videos from a prompt.

  python -m spacetime.sample --prompt="a red 3 moving left" --out=three.mp4
  python -m spacetime.sample --prompts_file=prompts.txt --num=2 --out=clips.mp4
  python -m spacetime.sample --prompt="..." --image=first.png --out=video.gif

--out chooses the form: .mp4 (H.264), .webm, .gif, .png (frames, or one still
image), and a JSON sidecar beside it tells how it was made. More than one clip
is numbered: clips-000.mp4, clips-001.mp4, with a sheet, clips-sheet.png.
"""

import dataclasses
import pathlib
import time

import jax
from absl import flags

import spacetime
from spacetime import build, command, generate, pretrained, sharding
from spacetime import config as config_lib
from spacetime.data import clips as clips_lib
from spacetime.sampling import writer

_PROMPT = flags.DEFINE_string('prompt', None, 'What the video shows.')
_PROMPTS = flags.DEFINE_string(
  'prompts_file',
  None,
  'A file with a prompt on each line, instead of --prompt.',
)
_OUT = flags.DEFINE_string('out', None, 'Where to write, such as video.mp4.')
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  'digits',
  'A work directory, a weights folder, or a bundled one.',
)
_SEED = flags.DEFINE_integer('seed', 0, 'Same seed, same video.')
_NUM = flags.DEFINE_integer('num', 1, 'Videos for each prompt.')
_STEPS = flags.DEFINE_integer('steps', None, 'Steps of the solver.')
_SOLVER = flags.DEFINE_string('solver', None, 'euler, heun, dpm or unipc.')
_SHIFT = flags.DEFINE_float(
  'shift', None, 'Above 1 spends more steps where there is much noise.'
)
_GUIDANCE = flags.DEFINE_float(
  'guidance', None, 'How hard to follow the prompt; 1 is unguided and faster.'
)
_NEGATIVE = flags.DEFINE_string(
  'negative_prompt', '', 'What to stay away from.'
)
_FRAMES = flags.DEFINE_integer('frames', None, 'Frames; as trained if not set.')
_SIZE = flags.DEFINE_string('size', None, 'WIDTHxHEIGHT in pixels, as trained.')
_IMAGE = flags.DEFINE_string('image', None, 'The first frame, an image file.')
_FPS = flags.DEFINE_float('fps', None, 'Frames a second of the file.')
_BATCH = flags.DEFINE_integer('batch', 16, 'Videos sampled at once.')


def main() -> None:
  """Flags -> build -> sample -> write."""
  prompts = get_prompts()
  if not _OUT.value:
    raise ValueError('--out: expected a file to write, such as video.mp4')
  for name, value in (('num', _NUM.value), ('batch', _BATCH.value)):
    if value < 1:
      raise ValueError(f'--{name}={value}: expected 1 or more')
  if _SEED.value < 0:
    raise ValueError(f'--seed={_SEED.value}: expected 0 or more')
  if _FPS.value is not None and not 0 < _FPS.value <= 240:
    raise ValueError(f'--fps={_FPS.value}: expected more than 0, at most 240')
  size = parse_size(_SIZE.value)
  out = writer.check_output(_OUT.value)
  # Sampling is not sharded here: every device would hold the same clip.
  mesh = sharding.make_mesh(
    sharding.MeshConfig(data=1), devices=jax.devices()[:1]
  )
  model = pretrained.load(_CHECKPOINT.value, mesh=mesh)
  length = model.networks.text_length
  prompts = [
    model.tokenizer.check_prompt(p, length=length)
    for p in prompts
    for _ in range(_NUM.value)
  ]
  try:
    model.tokenizer.encode(_NEGATIVE.value, length=length)
  except ValueError as e:
    raise ValueError(f'--negative_prompt: {e}') from e
  data = config_lib.data(model.config)
  grid = build.grids(
    model.config,
    model.networks,
    (
      data.world.frames if _FRAMES.value is None else _FRAMES.value,
      *(size or (data.world.height, data.world.width)),
    ),
  )
  settings = config_lib.sampling(
    model.config,
    steps=_STEPS.value,
    solver=_SOLVER.value,
    guidance=_GUIDANCE.value,
    shift=_SHIFT.value,
  )
  image = _IMAGE.value and clips_lib.read_image(
    _IMAGE.value, height=grid.height, width=grid.width
  )
  began = time.monotonic()
  videos = generate.sample(
    model,
    prompts,
    grid=grid,
    settings=settings,
    negative=_NEGATIVE.value,
    seed=_SEED.value,
    image_HWC=image,
    batch=_BATCH.value,
  )
  fps = data.fps if _FPS.value is None else _FPS.value
  about = {
    'version': spacetime.__version__,
    'checkpoint': _CHECKPOINT.value,
    'weights_hash': model.weights_hash,
    'seed': _SEED.value,
    'negative_prompt': _NEGATIVE.value,
    'image': _IMAGE.value,
    'frames': grid.frames,
    'height': grid.height,
    'width': grid.width,
    'fps': fps,
    'sampling': dataclasses.asdict(settings),
    'seconds': round(time.monotonic() - began, 3),
  }
  write(out, videos, prompts, about)


def get_prompts() -> list[str]:
  """The prompts that the flags name, at least one."""
  if (_PROMPT.value is None) == (_PROMPTS.value is None):
    raise ValueError('expected one of --prompt and --prompts_file')
  if _PROMPT.value is not None:
    if not _PROMPT.value.strip():
      raise ValueError('prompt is empty; expected what the video shows')
    return [_PROMPT.value]
  path = pathlib.Path(_PROMPTS.value)
  if not path.is_file():
    raise ValueError(f'--prompts_file={path}: no such file')
  lines = [line.strip() for line in path.read_text().splitlines()]
  prompts = [line for line in lines if line]
  if not prompts:
    raise ValueError(f'--prompts_file={path}: expected a prompt on each line')
  return prompts


def parse_size(text: str | None) -> tuple[int, int] | None:
  """'WIDTHxHEIGHT' -> (height, width)."""
  if text is None:
    return None
  parts = text.lower().split('x')
  if len(parts) != 2 or not all(p.isdigit() for p in parts):
    raise ValueError(f'--size={text}: expected WIDTHxHEIGHT, such as 64x64')
  return int(parts[1]), int(parts[0])


def write(out: pathlib.Path, videos, prompts, about: dict) -> None:
  """Writes each video with its sidecar, and a contact sheet of several."""
  for i, (video, prompt) in enumerate(zip(videos, prompts, strict=True)):
    path = out
    if len(videos) > 1:
      path = out.with_name(f'{out.stem}-{i:03d}{out.suffix}')
    written = writer.write_video(path, video, fps=about['fps'])
    writer.write_sidecar(path, {'prompt': prompt, 'number': i} | about)
    print(f'{written}: {prompt}')
  if len(videos) > 1:
    sheet = out.with_name(f'{out.stem}-sheet.png')
    print(f'{writer.write_sheet(sheet, videos, prompts)}: all of them')


if __name__ == '__main__':
  command.run(main)
