"""Evaluation reports: measures of a model's videos beside those of real clips.

Half of the prompts describe held-out clips, with handwriting that is not in the
training set; the others describe held-out compositions (digit, colour and
motion). Real clips of the same scenes give an upper bound, and clips scored
against the scene of another clip what chance reaches.
"""

import dataclasses
import json
import pathlib
import time
import warnings

import jax
import numpy as np
import tqdm
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib import pyplot

from spacetime import SettingError, SettingWarning, checkpoint, sharding
from spacetime.checkpoint import load
from spacetime.checkpoint.locate import locate
from spacetime.config import networks
from spacetime.data.digits import captions, examples
from spacetime.data.digits import world as world_lib
from spacetime.evaluation import bias, distances, features, i3d
from spacetime.evaluation import world as measures
from spacetime.evaluation.settings import EvaluationSettings
from spacetime.media import contact_sheet, files
from spacetime.media.pixels import psnr, to_frames, to_video
from spacetime.pipeline.pipeline import Pipeline
from spacetime.pipeline.request import Request

# Settings of the sampler that are reported.
SAMPLER = (
  *('solver', 'steps', 'guidance', 'temperature'),
  *('skip_layers', 'skip_layer_scale'),
)
# Settings that only sampling uses.
UNSAMPLED = ('frames', 'size', *SAMPLER, 'batch_size', 'features')
# Offset of the seeds of evaluation scenes, which no training uses.
SCENES = 1_000_003
METRICS = 'metrics.json'
SHOWN = 8  # clips in the contact sheet
# Attributes whose values are compared, by whether each of them is right.
GROUPS = ('digit', 'colour', 'motion')
pyplot.switch_backend('agg')  # files only, no window


def write(settings: EvaluationSettings, *, mesh=None) -> str:
  """Evaluates a checkpoint and writes metrics.json and pictures.

  Args:
    settings: checkpoint, clips and sampler.
    mesh: devices, see sharding.as_mesh; None is the first device.

  Returns:
    The measures as text.

  Raises:
    SettingError: settings that the checkpoint does not support.
    ValueError: no such checkpoint, or a folder that cannot be written, or
      holds another evaluation.
  """
  out = files.check_local('out', settings.out).absolute()
  files.check_writable(out)
  if (out / METRICS).exists() and not settings.overwrite:
    raise SettingError(
      'out',
      settings.out,
      f'a folder without {METRICS}, which another evaluation wrote',
      hint='change `out`, or set `overwrite` to replace it',
    )
  folder = locate(settings.checkpoint).folder
  if checkpoint.read_config(folder)['stage'] == 'autoencoder':
    metrics = evaluate_autoencoder(settings, folder, out, mesh=mesh)
    text = (
      f'PSNR {metrics["psnr"]} dB, the lowest of {settings.num} clips '
      f'{metrics["psnr_least"]:.2f}'
    )
  else:
    metrics = evaluate_model(settings, out, mesh=mesh)
    text = table(metrics)
  with files.atomic_write(out / METRICS) as temporary:
    temporary.write_text(json.dumps(metrics, indent=2) + '\n', 'utf-8')
  return text


def evaluate_autoencoder(
  settings: EvaluationSettings, folder: str, out: pathlib.Path, *, mesh=None
) -> dict:
  """Measures the PSNR of reconstructed held-out clips; writes a sheet."""
  reason = 'an autoencoder reconstructs clips and samples none'
  for name in UNSAMPLED:
    value, default = getattr(settings, name), getattr(EvaluationSettings, name)
    if value != default:
      warnings.warn(
        SettingWarning(name, value, f'no effect, since {reason}'), stacklevel=2
      )
  mesh = sharding.as_mesh(mesh)
  experiment = checkpoint.read_experiment(folder)
  _warn_of_other_data(settings, experiment.data.name)
  autoencoder = networks.autoencoder(experiment.autoencoder)
  params = load.load_own(experiment.autoencoder, folder, mesh=mesh)
  params = params['autoencoder']
  world = dataclasses.replace(experiment.data.world, **settings.contents)
  real, _ = real_clips(world, count=settings.num, seed=settings.seed)

  rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

  @jax.jit
  def reconstruct(frames_BFHWC):
    video = to_video(frames_BFHWC)
    decoded = autoencoder.decode(params, autoencoder.encode(params, video))
    return psnr(video, decoded), decoded

  values, clips, texts = [], [], []
  with tqdm.tqdm(total=len(real), desc='reconstructing', unit='clip') as bar:
    for first in range(0, len(real), mesh.size):  # a clip on each device
      batch = real[first : first + mesh.size]
      padded = batch + batch[-1:] * (mesh.size - len(batch))
      result = reconstruct(jax.device_put(np.stack(padded), rows))
      for clip, value, decoded in zip(batch, *result, strict=False):
        values.append(float(value))
        if len(values) <= SHOWN // 2:
          clips += [clip, to_frames(decoded)]
          texts += ['a held-out clip', f'its reconstruction, {value:.1f} dB']
        bar.update()
  contact_sheet.write(out / 'sheet.png', clips, texts)
  return {
    'checkpoint': settings.checkpoint,
    'weights_hash': checkpoint.weights_hash(folder),
    'num': settings.num,
    'seed': settings.seed,
    'scenes': settings.contents,
    'psnr': round(float(np.mean(values)), 3),
    'psnr_least': round(float(np.min(values)), 3),
  }


def evaluate_model(
  settings: EvaluationSettings, out: pathlib.Path, *, mesh=None
) -> dict:
  """Measures the model's videos and real clips of the same scenes."""
  pipe = Pipeline(settings.checkpoint, mesh=mesh)
  _warn_of_other_data(settings, pipe.engine.data.name)
  world = dataclasses.replace(
    pipe.engine.data.world.without_wandering(), **settings.contents
  )
  request = Request(
    checkpoint=settings.checkpoint,
    prompt=['any'] * settings.num,
    frames=world.frames if settings.frames is None else settings.frames,
    size=settings.size or (world.width, world.height),
    seed=settings.seed,
    batch_size=settings.batch_size,
    sampling=settings.sampling,
  )
  geometry = pipe.geometry(request)
  world = world.resized(geometry.frames, geometry.height, geometry.width)
  if settings.features == 'i3d':
    i3d.check(geometry.frames)
  real, scenes = real_clips(world, count=settings.num, seed=settings.seed)
  prompts = [captions.canonical_caption(scene) for scene in scenes]
  began = time.monotonic()
  videos = pipe.generate(dataclasses.replace(request, prompt=prompts))
  seconds = time.monotonic() - began
  sampled = [video.frames for video in videos]
  sampling = videos[0].metadata['sampling']
  metrics = {
    'checkpoint': settings.checkpoint,
    'weights_hash': videos[0].metadata['weights_hash'],
    'num': settings.num,
    'seed': settings.seed,
    'frames': geometry.frames,
    'size': f'{geometry.width}x{geometry.height}',
    'scenes': settings.contents,
    **{k: sampling[k] for k in SAMPLER},
    'seconds_per_video': round(seconds / settings.num, 3),
  }
  measured, measured_real = measure(sampled), measure(real)
  scores = score(measured, scenes)
  metrics |= {
    'sampled': measures.summarise(scores),
    'intervals': measures.intervals(scores),
    'chance': measures.summarise(score(measured, scenes[1:] + scenes[:1])),
    'real': measures.summarise(score(measured_real, scenes)),
    'bias': comparisons(measured, scenes),
    'bias_of_real': comparisons(measured_real, scenes),
  }
  # Of other scenes: their distance is what as many real clips have, the floor.
  other, _ = real_clips(world, count=settings.num, seed=settings.seed + 1)
  metrics['distances'] = compare(settings.features, sampled, real, other)
  write_pictures(out, metrics, sampled, real, prompts)
  return metrics


def compare(name: str, sampled, real, other) -> dict:
  """Distances of sampled clips and of other real ones from real clips, by the
  features of that name."""
  extract = {'digits': features.extract, 'i3d': i3d.extract}[name]
  real_ND = extract(real)
  return {
    'features': name,
    'sampled': distances.between(extract(sampled), real_ND),
    'real': distances.between(extract(other), real_ND),
  }


def _warn_of_other_data(settings: EvaluationSettings, name: str) -> None:
  if name == 'folder':
    warnings.warn(
      SettingWarning(
        'checkpoint',
        settings.checkpoint,
        'trained on clips of a folder: the scores are those of prompts and '
        'clips of the digits world, which it may not know',
      ),
      stacklevel=3,
    )


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


def measure(clips) -> list[measures.Measurement]:
  """What each clip shows."""
  return [
    measures.measure(clip)
    for clip in tqdm.tqdm(clips, desc='measuring', unit='clip')
  ]


def score(measured, scenes) -> list[dict[str, float]]:
  """The scores of measured clips against scenes."""
  pairs = zip(measured, scenes, strict=True)
  return [measures.score(clip, scene) for clip, scene in pairs]


def comparisons(measured, scenes) -> list[dict]:
  """Each digit, colour and motion against all others, see bias.compare."""
  characters = [c for scene in scenes for c in scene.characters]
  groups = {
    f'{name}={value}': [getattr(c, name) == value for c in characters]
    for name in GROUPS
    for value in sorted({getattr(c, name) for c in characters})
  }
  right_NA = np.concatenate(
    [
      measures.matches(clip, scene)
      for clip, scene in zip(measured, scenes, strict=True)
    ]
  )
  scores = dict(zip(measures.ATTRIBUTES, right_NA.T, strict=True))
  clips = np.repeat(
    np.arange(len(scenes)), [len(scene.characters) for scene in scenes]
  )
  result = bias.compare(
    groups, {name: scores[name] for name in GROUPS}, clips=clips
  )
  return [
    {
      k: round(v, 4) if isinstance(v, float) else v
      for k, v in dataclasses.asdict(comparison).items()
    }
    for comparison in result
  ]


def table(metrics: dict) -> str:
  """The measures as text, with 95 % intervals, chance and real clips, and the
  groups of prompts that are served worse."""
  rows = [f'{"":20} sampled  95 % interval  chance   real']
  for name, value in metrics['sampled'].items():
    real = metrics['real'][name]
    if name.endswith('clips'):
      rows.append(f'{name:20} {value:7.0f} {real:29.0f}')
      continue
    low, high = metrics['intervals'][name]
    chance = metrics['chance'][name]
    rows.append(
      f'{name:20} {value:7.3f}  {low:.3f} to {high:.3f}  {chance:.3f}  '
      f'{real:.3f}'
    )
  apart = metrics['distances']
  for name, value in apart['sampled'].items():
    floor = apart['real'][name]
    title = f'{name} ({apart["features"]})'
    rows.append(f'{title:20} {value:7.3f} {floor:29.3f}')
  for kind, name in (('sampled', 'bias'), ('real', 'bias_of_real')):
    result = [bias.Comparison(**values) for values in metrics[name]]
    rows += ['', f'{kind}: {bias.summary(result)}']
  return '\n'.join(rows)


def write_pictures(
  out: pathlib.Path, metrics: dict, sampled, real, prompts
) -> None:
  """Writes sheet.png (clips beside real ones) and chart.png."""
  clips, texts = [], []
  for i in range(min(SHOWN, len(sampled))):
    clips += [sampled[i], real[i]]
    texts += [prompts[i], '(a real clip of the same scene)']
  contact_sheet.write(out / 'sheet.png', clips, texts)
  names = [n for n in metrics['sampled'] if not n.endswith('clips')]
  positions = np.arange(len(names))
  figure, axes = pyplot.subplots(figsize=(8, 0.3 * len(names) + 1))
  for shift, kind in ((-0.2, 'real'), (0.2, 'sampled')):
    values = [metrics[kind][name] for name in names]
    axes.barh(positions + shift, values, height=0.4, label=kind)
  interval_n2 = np.array([metrics['intervals'][name] for name in names])
  value_n = np.array([metrics['sampled'][name] for name in names])
  axes.errorbar(
    value_n,
    positions + 0.2,
    xerr=np.abs(interval_n2 - value_n[:, None]).T,
    fmt='none',
    ecolor='black',
    elinewidth=1,
  )
  chance_n = [metrics['chance'][name] for name in names]
  axes.plot(chance_n, positions, '|', color='black', label='chance')
  axes.set_yticks(positions, names)
  axes.invert_yaxis()
  axes.set_xlim(0, 1)
  axes.legend(loc='lower right')
  figure.tight_layout()
  figure.savefig(out / 'chart.png', dpi=100)
  pyplot.close(figure)
