"""Every preset of experiments/pods.py compiled for its slice, as a table.

  PYTHONPATH=. python tests/benchmarks/dry_runs.py --out=runs.jsonl [NAME ...]
  PYTHONPATH=. python tests/benchmarks/dry_runs.py --seconds

Compiling takes a minute or several each, one at a time. What is in the file
already is not compiled again; the table is of the whole file. --seconds
compiles nothing: expected seconds of a training step by the FLOPs and the
efficiency of published runs, which is what a compiled report says too, unless
memory or the interconnect takes longer.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from experiments import pods
from spacetime.config import networks, parse
from spacetime.dryrun import calibration, programs
from spacetime.sharding import topology

HEAD = (
  '| preset | mesh | GiB a device | of | fits | whole activations '
  '| seconds to compile | step, s (expected) | MFU | versions |\n'
  + '| --- ' * 10
  + '|'
)


def main() -> None:
  """Compiles what is missing, prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', default='dry_runs.jsonl')
  parser.add_argument('--seconds', action='store_true')
  parser.add_argument('names', nargs='*')
  flags = parser.parse_args()
  if flags.seconds:
    print(seconds_table())
    return
  out = pathlib.Path(flags.out)
  done = {entry['name']: entry for entry in read(out)}
  for name in flags.names or pods.names():
    if name not in done:
      done[name] = compiled(name)
      with out.open('a') as f:
        f.write(json.dumps(done[name]) + '\n')
  print(HEAD)
  for entry in done.values():
    print(row(entry))


def seconds_table() -> str:
  """Expected seconds of a training step: a line for each model and size."""
  lines = [
    '| expected seconds a step; MFU | ' + ' | '.join(pods.DEVICES) + ' |',
    '| --- ' * (1 + len(pods.DEVICES)) + '|',
  ]
  for model, sizes in pods.CLIPS.items():
    for size in sizes:
      names = [f'{model}-{size}-{slice_}' for slice_ in pods.DEVICES]
      cells = [expected(n) if n in pods.names() else '' for n in names]
      lines.append(f'| {model} {size} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def expected(name: str) -> str:
  """Expected seconds and MFU of a preset."""
  slices = topology.parse(name.split('-', 2)[2])
  experiment = parse.experiment(pods.get_config(name))
  nets = networks.networks(experiment)
  model, dense, attention = programs.training_flops(experiment, nets)
  peak = slices.chip.flops * slices.devices
  share = calibration.efficiency(slices.chip.name, 'train')
  seconds = share.seconds(dense, attention, peak=peak)
  return f'{seconds:.2g}; {model / peak / seconds:.0%}'


def read(path: pathlib.Path) -> list[dict]:
  """Lines of an earlier run."""
  return (
    [json.loads(x) for x in path.read_text().splitlines()]
    if (path.exists())
    else []
  )


def compiled(name: str) -> dict:
  """What the dry run of a preset says; without `total` where it failed."""
  ran = subprocess.run(
    [
      *(sys.executable, '-m', 'spacetime', 'compile', '--json'),
      f'--config=experiments/pods.py:{name}',
      f'--topology={name.split("-", 2)[2]}',
    ],
    capture_output=True,
    text=True,
  )
  lines = [x for x in ran.stdout.splitlines() if x.startswith('{')]
  entry = json.loads(lines[-1]) if lines else {'error': ran.stderr[-2000:]}
  return {'name': name} | entry


def row(entry: dict) -> str:
  """A line of the table."""
  if 'total' not in entry:
    return f'| {entry["name"]} | failed: {entry["error"].splitlines()[-1:]} |'
  mesh = ', '.join(f'{k} {n}' for k, n in entry['mesh'].items() if n > 1)
  limit = entry['memory']['limit']
  cells = [
    entry['name'],
    mesh,
    f'{entry["total"] / 2**30:.1f}',
    f'{limit / 2**30:.1f}',
    'yes' if entry['fits'] else f'no: {entry["advice"]}',
    str(len(entry['gathered'])),
    f'{entry["seconds"]:.0f}',
  ]
  if 'estimate' in entry:
    cells += [
      f'{entry["estimate"]["seconds"]:.2g}',
      f'{entry["estimate"]["mfu"]:.0%}',
    ]
  else:
    cells += ['', '']
  cells.append(', '.join(f'{k} {v}' for k, v in entry['versions'].items()))
  return '| ' + ' | '.join(cells) + ' |'


if __name__ == '__main__':
  main()
