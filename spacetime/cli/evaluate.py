"""Measures what a model's videos show, beside the same of real clips.

  python -m spacetime evaluate --world=digits --checkpoint=digits --num=256 \\
    --out=runs/evaluation

Half of the prompts describe held-out clips (handwriting never trained on),
half compositions (digit x colour x motion) that training never showed. The
real clips of the same scenes are measured too: the ceiling. --out gets
metrics.json, sheet.png (clips beside the real ones) and chart.png. --size and
--frames ask for others than those it was trained on.

Of an autoencoder it measures how well held-out clips come back (PSNR).
"""

import json
import pathlib
import time

import jax
import numpy as np
import tqdm
from absl import flags
from matplotlib import pyplot

from spacetime import checkpoint, sharding
from spacetime.checkpoint import load
from spacetime.checkpoint.locate import locate
from spacetime.config import networks
from spacetime.data import geometry
from spacetime.data.digits import captions, examples
from spacetime.data.digits import world as world_lib
from spacetime.evaluation import world as measures
from spacetime.media import contact_sheet, files
from spacetime.media.pixels import to_frames, to_video
from spacetime.pipeline import generate, request
from spacetime.training import autoencoder_loss

_WORLD = flags.DEFINE_string(
  'world', 'digits', 'What the model was trained on.'
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  'digits',
  'A work directory, a weights folder, or a bundled one.',
)
_NUM = flags.DEFINE_integer('num', 256, 'Videos to sample and measure.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of scenes and noise.')
_STEPS = flags.DEFINE_integer('steps', None, 'Steps of the solver.')
_SOLVER = flags.DEFINE_string('solver', None, 'euler, heun, dpm or unipc.')
_GUIDANCE = flags.DEFINE_float('guidance', None, 'Scale of guidance.')
_TEMPERATURE = flags.DEFINE_float(
  'temperature', None, 'Of the noise to begin with; below 1 varies less.'
)
_BATCH = flags.DEFINE_integer('batch', 16, 'Videos sampled at once.')
_FRAMES = flags.DEFINE_integer('frames', None, 'Frames; as trained if absent.')
_SIZE = flags.DEFINE_string('size', None, 'WIDTHxHEIGHT; as trained if absent.')
_OUT = flags.DEFINE_string(
  'out', 'evaluation', 'The folder for what was found.'
)
# Records of the evaluation are those of a seed that no training uses.
SCENES = 1_000_003
SHOWN = 8
pyplot.switch_backend('agg')  # files alone: no window is wanted


def main() -> None:
  """Flags -> scenes -> videos -> measures."""
  if _WORLD.value != 'digits':
    raise ValueError(f"--world={_WORLD.value}: expected 'digits'")
  if not _OUT.value:
    raise ValueError('--out: expected a folder for what is found')
  if _NUM.value < 2 or _BATCH.value < 1 or _SEED.value < 0:
    raise ValueError(
      f'--num={_NUM.value}, --batch={_BATCH.value}, --seed={_SEED.value}: '
      'expected at least 2, 1 and 0'
    )
  if _STEPS.value is not None and _STEPS.value < 1:
    raise ValueError(f'--steps={_STEPS.value}: expected 1 or more')
  out = pathlib.Path(_OUT.value).absolute()
  files.check_writable(out)
  mesh = sharding.single_device_mesh()
  folder = locate(_CHECKPOINT.value).folder
  if checkpoint.read_config(folder)['stage'] == 'autoencoder':
    found = evaluate_autoencoder(folder, out, mesh)
  else:
    found = evaluate_model(out, mesh)
  with files.atomic_write(out / 'metrics.json') as temporary:
    temporary.write_text(json.dumps(found, indent=2) + '\n')


def evaluate_autoencoder(folder: str, out: pathlib.Path, mesh) -> dict:
  """PSNR in dB of held-out clips, and a sheet of some."""
  experiment = checkpoint.read_experiment(folder)
  codec = networks.autoencoder(experiment.autoencoder)
  params = load.load_own(experiment.autoencoder, folder, mesh=mesh)[
    'autoencoder'
  ]
  world = experiment.data.world
  real, _ = real_clips(world, count=_NUM.value, seed=_SEED.value)

  @jax.jit
  def decibels(frames_FHWC):
    video = to_video(frames_FHWC)[None]
    decoded = codec.decode(params, codec.encode(params, video))
    return autoencoder_loss.psnr(video, decoded)[0], decoded[0]

  found, clips, texts = [], [], []
  for i, clip in enumerate(tqdm.tqdm(real, desc='decode', unit='clip')):
    value, decoded = decibels(clip)
    found.append(float(value))
    if i < SHOWN // 2:
      clips += [clip, to_frames(decoded)]
      texts += ['a held-out clip', f'its reconstruction, {value:.1f} dB']
  contact_sheet.write(out / 'sheet.png', clips, texts)
  told = {
    'checkpoint': _CHECKPOINT.value,
    'weights_hash': checkpoint.weights_hash(folder),
    'num': _NUM.value,
    'seed': _SEED.value,
    'psnr': round(float(np.mean(found)), 3),
    'psnr_least': round(float(np.min(found)), 3),
  }
  print(f'PSNR {told["psnr"]} dB, the least of {len(found)} {min(found):.2f}')
  return told


def evaluate_model(out: pathlib.Path, mesh) -> dict:
  """What the model's videos show, beside real clips of the same scenes."""
  model = load.load(_CHECKPOINT.value, mesh=mesh)
  settings = model.experiment.sampling.with_changes(
    steps=_STEPS.value,
    solver=_SOLVER.value,
    guidance=_GUIDANCE.value,
    temperature=_TEMPERATURE.value,
  )
  grid, world = asked_sizes(model)
  real, scenes = real_clips(world, count=_NUM.value, seed=_SEED.value)
  prompts = [captions.canonical_caption(scene) for scene in scenes]
  began = time.monotonic()
  made = generate.sample(
    model,
    prompts,
    grid=grid,
    settings=settings,
    seed=_SEED.value,
    batch=_BATCH.value,
  )
  seconds = time.monotonic() - began
  found = {
    'checkpoint': _CHECKPOINT.value,
    'weights_hash': model.weights_hash,
    'num': _NUM.value,
    'seed': _SEED.value,
    'frames': grid.frames,
    'size': f'{grid.width}x{grid.height}',
    'solver': settings.solver,
    'steps': settings.steps,
    'guidance': settings.guidance,
    'temperature': settings.temperature,
    'seconds_per_video': round(seconds / _NUM.value, 3),
    'sampled': summary(made, scenes),
    'real': summary(real, scenes),
  }
  write_pictures(out, found, made, real, prompts)
  print(table(found))
  return found


def asked_sizes(
  model: load.Model,
) -> tuple[geometry.Geometry, world_lib.World]:
  """Sizes of --frames and --size, and the world whose clips have them."""
  data = model.experiment.data
  world = data.world.without_wandering()
  height, width = request.parse_size(_SIZE.value) or (world.height, world.width)
  frames = world.frames if _FRAMES.value is None else _FRAMES.value
  grid = networks.clip_geometry(data, model.networks, (frames, height, width))
  return grid, world.resized(frames, height, width)


def real_clips(world: world_lib.World, *, count: int, seed: int):
  """(frames_FHWC, scenes): half held-out clips, half held-out compositions."""
  clips, scenes = [], []
  for i in range(count):
    split = world_lib.SPLITS[1 + i % 2]
    record = examples.example(
      i // 2, world=world, split=split, seed=SCENES + seed
    )
    clips.append(record['video'])
    scenes.append(world_lib.from_json(record['scene']))
  return clips, scenes


def summary(clips, scenes) -> dict[str, float]:
  """The measures of clips against their scenes."""
  pairs = tqdm.tqdm(
    zip(clips, scenes, strict=True),
    total=len(clips),
    desc='measure',
    unit='clip',
  )
  return measures.summarise(
    measures.score(measures.measure(clip), scene) for clip, scene in pairs
  )


def table(found: dict) -> str:
  """The measures as text: sampled, and real in brackets."""
  rows = [f'{"":32} sampled    real']
  for name, value in found['sampled'].items():
    rows.append(f'{name:32} {value:7.3f} {found["real"][name]:7.3f}')
  return '\n'.join(rows)


def write_pictures(out: pathlib.Path, found: dict, made, real, prompts) -> None:
  """sheet.png and chart.png."""
  clips, texts = [], []
  for i in range(min(SHOWN, len(made))):
    clips += [made[i], real[i]]
    texts += [prompts[i], '(a real clip of that)']
  contact_sheet.write(out / 'sheet.png', clips, texts)
  names = [n for n in found['sampled'] if not n.endswith('clips')]
  place = np.arange(len(names))
  figure, axes = pyplot.subplots(figsize=(8, 0.3 * len(names) + 1))
  for shift, kind in ((-0.2, 'real'), (0.2, 'sampled')):
    values = [found[kind][name] for name in names]
    axes.barh(place + shift, values, height=0.4, label=kind)
  axes.set_yticks(place, names)
  axes.invert_yaxis()
  axes.set_xlim(0, 1)
  axes.legend(loc='lower right')
  figure.tight_layout()
  figure.savefig(out / 'chart.png', dpi=100)
  pyplot.close(figure)
