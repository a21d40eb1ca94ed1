"""Memory and seconds of every preset of experiments/sampling_presets.py.

  PYTHONPATH=. python tests/benchmarks/sampling_presets.py --compile NAME ...
  PYTHONPATH=. python tests/benchmarks/sampling_presets.py --write

--compile adds the compiler's report of TPU presets to sampling_presets.jsonl, a
minute or several each. --write makes docs/sampling_presets.md: what is compiled
is marked, the rest is computed. Weights and cached text are exact; activations
are those of the compiled presets, per token, channel and row, at their largest.
Seconds are the FLOPs at the efficiency of published runs
(spacetime/dryrun/calibration.py); on GPUs at GPU_SHARE.
"""

import argparse
import functools
import json
import math
import pathlib
import subprocess
import sys

import jax
from jax.sharding import AbstractMesh, AxisType

from experiments import sampling_presets as presets
from spacetime import sharding
from spacetime.config import networks, parse
from spacetime.config.experiment import Experiment
from spacetime.dryrun import calibration, programs
from spacetime.sharding import chips, topology

COMPILED = pathlib.Path(__file__).with_suffix('.jsonl')
PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'sampling_presets.md'
GIB = 2**30
GPU = 'NVIDIA H100 80GB HBM3'
GPU_MEMORY = 79.6 * GIB
# NeMo DFM trains Wan 14B at 326 TFLOP/s on an H100.
GPU_SHARE = 326e12 / chips.PEAKS[GPU]
# Seconds of a video that others have published, by preset.
PUBLISHED = {
  '14b-720p-v6e-8-50': 'MaxDiffusion, Wan 2.2, 40 steps: 251 s',
  '14b-720p-tpu7x-8-50': 'MaxDiffusion, Wan 2.1, 50 steps: 249 s',
  '14b-480p-h100-1-50': 'LightX2V: 5.2 s a guided step, 259 s for 50 '
  '(model not named)',
  '14b-480p-h100-8-50': 'LightX2V: 0.75 s a guided step, 38 s for 50 '
  '(model not named)',
}
HEAD = """# Sampling on a few chips

Meshes for hardware that people own (`experiments/sampling_presets.py`), clips
of 81 frames of 480x832 or 720x1280; of Wan 2.2 5B 121 frames of 480x832 or
704x1280. 50 steps are with guidance, 4 without, as distilled weights are
sampled. GiB are those of one device (half a chip on TPU7x) while the
transformer runs, in bfloat16; the text encoder and the autoencoder are read
before and after it. `c` marks what the TPU compiler reported
({versions});
the rest is computed, see `tests/benchmarks/sampling_presets.py`. Seconds are
of one video, for the transformer alone: FLOPs at the efficiency of published
runs, none of them measured here. Where a mesh makes several videos at once
they are the share of one.

"""
TAIL = """
Published beside them:

{published}

```sh
spacetime compile --config=sampling_presets:{example} \\
  --topology=v6e-8 --program=sample
```

```sh
PYTHONPATH=. python tests/benchmarks/sampling_presets.py --write
```
"""


def main() -> None:
  """Compiles presets, or writes the page."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--compile', nargs='*', default=[])
  parser.add_argument('--write', action='store_true')
  arguments = parser.parse_args()
  for name in arguments.compile:
    if name not in read():
      entry = compiled(name)
      with COMPILED.open('a') as f:
        f.write(json.dumps({'name': name} | entry) + '\n')
      print(name, entry, flush=True)
  if arguments.write:
    PAGE.write_text(page(read()))


def read() -> dict[str, dict]:
  """The compiler's reports, by preset."""
  if not COMPILED.exists():
    return {}
  entries = map(json.loads, COMPILED.read_text().splitlines())
  return {entry.pop('name'): entry for entry in entries}


def compiled(name: str) -> dict:
  """What the dry run of a preset reports."""
  ran = subprocess.run(
    [
      *(sys.executable, '-m', 'spacetime', 'compile', '--json'),
      f'--config=sampling_presets:{name}',
      f'--topology={presets.split(name)[2]}',
      '--program=sample',
    ],
    capture_output=True,
    text=True,
  )
  lines = [x for x in ran.stdout.splitlines() if x.startswith('{')]
  if not lines:
    return {'error': ran.stderr[-2000:]}
  report = json.loads(lines[-1])
  return {
    key: report[key] for key in ('total', 'fits', 'seconds', 'versions')
  } | {
    'gathered': len(report['gathered']),
    'temporaries': report['memory']['rows'].get('activations, temporaries', 0),
    'interconnect': report['roofline'] and report['roofline']['interconnect'],
  }


def page(reports: dict[str, dict]) -> str:
  """The text of docs/sampling_presets.md."""
  reports = {k: v for k, v in reports.items() if 'total' in v}
  per_value = max(
    (
      report['temporaries'] / values_of_a_row(name)
      for name, report in reports.items()
    ),
    default=0.0,
  )
  lines = [
    '| hardware | model | mesh | videos at once '
    '| 4 steps: GiB; s | 50 steps: GiB; s |',
    '| --- ' * 6 + '|',
  ]
  for hardware in presets.DEVICES:
    for model in presets.MODELS:
      for size in presets.SIZES:
        names = [f'{model}-{size}-{hardware}-{n}' for n in presets.STEPS]
        cells = [
          hardware,
          f'{model} {size}',
          ' / '.join(
            ' x '.join(f'{k} {n}' for k, n in presets.mesh(name).items())
            for name in names
          ),
          ' / '.join(str(presets.videos(name)) for name in names),
          *(cell(name, reports.get(name), per_value) for name in names),
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
  versions = sorted(
    {
      ', '.join(f'{k} {v}' for k, v in report['versions'].items())
      for report in reports.values()
    }
  )
  published = '\n'.join(
    f'| `{name}` | {seconds(name):.0f} | {text} |'
    for name, text in PUBLISHED.items()
  )
  published = (
    '| preset | s, expected here | published |\n| --- | --- | --- |\n'
    + published
  )
  return (
    HEAD.format(versions='; '.join(versions))
    + '\n'.join(lines)
    + '\n'
    + TAIL.format(published=published, example='14b-720p-v6e-8-50')
  )


def cell(name: str, report: dict | None, per_value: float) -> str:
  """GiB and seconds of a preset."""
  if report is None:
    total = state(name) + per_value * values_of_a_row(name)
    mark = '' if total <= memory_limit(name) else ' (does not fit)'
  else:
    total, mark = report['total'], 'c' if report['fits'] else 'c (does not fit)'
  expected = seconds(name)
  shown = f'{expected:.2g}' if expected < 10 else f'{expected:.0f}'
  return f'{total / GIB:.1f}{mark}; {shown}'


def memory_limit(name: str) -> float:
  """Bytes of a device."""
  hardware = presets.split(name)[2]
  if hardware.startswith('h100'):
    return GPU_MEMORY
  return topology.parse(hardware).chip.hbm


@functools.cache
def opened(
  model: str, size: str, steps: int
) -> tuple[Experiment, networks.Networks, tuple[float, float]]:
  """The experiment, its networks and the FLOPs of a step of one video."""
  config = presets.get_config(f'{model}-{size}-h100-1-{steps}')
  experiment = parse.experiment(config)
  nets = networks.networks(experiment)
  return experiment, nets, programs.sampling_flops(experiment, nets)


def parsed(name: str):
  """What `opened` returns for a preset."""
  model, size, _, steps = presets.split(name)
  return opened(model, size, steps)


@functools.cache
def shapes_of(model: str):
  """Shapes of the transformer's parameters."""
  _, nets, _ = opened(model, '480p', 4)
  return {'dit': jax.eval_shape(nets.init, jax.random.key(0))['dit']}


def rows(name: str) -> int:
  """Rows of a device: branches of guidance of its videos."""
  branches = 1 if presets.split(name)[3] == 4 else 2
  return presets.videos(name) * branches // presets.mesh(name)['data']


def values_of_a_row(name: str) -> float:
  """Values of the residual stream on a device."""
  experiment, nets, _ = parsed(name)
  tokens = networks.clip_geometry(experiment.data, nets).tokens
  share = tokens / presets.mesh(name)['context']
  return rows(name) * share * experiment.model.width


def state(name: str) -> float:
  """Bytes of weights and of the text's keys and values on a device."""
  experiment, nets, _ = parsed(name)
  axes = presets.mesh(name)
  shape = tuple(axes.get(axis, 1) for axis in sharding.AXES)
  mesh = AbstractMesh(
    shape, sharding.AXES, axis_types=(AxisType.Auto,) * len(shape)
  )
  shapes = shapes_of(presets.split(name)[0])
  shardings = sharding.param_shardings(shapes, mesh)
  weights = sum(
    math.prod(s.shard_shape(x.shape))
    for x, s in zip(
      jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True
    )
  )
  model = experiment.model
  text = model.layers * rows(name) * nets.text_length * 2 * model.width
  return 2.0 * (weights + text)


def seconds(name: str) -> float:
  """Expected seconds of a video."""
  hardware, steps = presets.split(name)[2:]
  dense, attention = parsed(name)[2]  # of one video
  devices = presets.DEVICES[hardware]
  if hardware.startswith('h100'):
    step = (dense + attention) / (GPU_SHARE * chips.PEAKS[GPU] * devices)
  else:
    chip = topology.parse(hardware).chip
    share = calibration.efficiency(chip.name, 'sample')
    step = share.seconds(dense, attention, peak=chip.flops * devices)
  return steps * step


if __name__ == '__main__':
  main()
