"""Losses of one run on other meshes, processes and device orders.

  PYTHONPATH=. python tests/benchmarks/meshes.py [--quick] [--only=NAME ...]

Three steps of the tiny configs: one process of eight devices; two of four and
four of two in orders in which no process holds a run of the rows, as on v5p;
context parallelism; batches in parts; clips and packed rows.
Prints the losses and their largest relative difference from the first.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from tests.helpers import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 3
# Name -> processes, devices of each, order of the devices, axes, parts.
MESHES = {
  '1 x 8': (1, 8, '0,1,2,3,4,5,6,7', {}, (1, 2, 4)),
  '2 x 4, order of v5p': (2, 4, '0,1,4,5,2,3,6,7', {}, (1, 2, 4)),
  '4 x 2, order of v5p': (4, 2, '0,4,1,5,2,6,3,7', {}, (1, 2, 4)),
  '4 x 2, context 2': (4, 2, '0,1,2,3,4,5,6,7', {'context': 2}, (1,)),
}


def main() -> None:
  """Runs every mesh as processes of this script, and compares."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--folder', type=pathlib.Path, help='of the runs; finished meshes are kept'
  )
  parser.add_argument(
    '--only', action='append', choices=MESHES, help='meshes, the first too'
  )
  parser.add_argument(
    '--quick', action='store_true', help='batches in one part alone'
  )
  parser.add_argument('--worker', help='name of a mesh; runs one process of it')
  arguments = parser.parse_args()
  if arguments.worker:
    work(arguments.worker, arguments.folder, quick=arguments.quick)
    return
  folder = arguments.folder or pathlib.Path(tempfile.mkdtemp())
  reference, largest = {}, 0.0
  for name in arguments.only or MESHES:
    if not (folder / _file(name)).exists():
      measure(name, folder, quick=arguments.quick)
    losses_by_case = json.loads((folder / _file(name)).read_text())
    for case, losses in losses_by_case.items():
      kind = case.split()[0]
      expected = reference.setdefault(kind, losses)
      error = np.max(np.abs(np.array(losses) / expected - 1))
      largest = max(largest, error)
      shown = ' '.join(f'{loss:.6f}' for loss in losses)
      print(f'{name}, {case}: {shown}; differs by {error:.1e}', flush=True)
  print(f'largest relative difference: {largest:.1e}')


def measure(name: str, folder: pathlib.Path, *, quick: bool) -> None:
  """Runs the processes of a mesh, which write their losses by case."""
  processes, devices = MESHES[name][:2]
  ran = subprocess.run(
    [
      sys.executable,
      'launch/local_pod.py',
      f'--processes={processes}',
      f'--devices={devices}',
      '--',
      sys.executable,
      __file__,
      f'--worker={name}',
      f'--folder={folder}',
      *(['--quick'] if quick else []),
    ],
    cwd=ROOT,
    env=os.environ
    | {
      'PYTHONPATH': str(ROOT),
      'XLA_FLAGS': xla_flags.COMPILE_QUICKLY,
      'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.cache/jax_tests'),
      'JAX_DEFAULT_MATMUL_PRECISION': 'float32',
    },
    capture_output=True,
    text=True,
  )
  if ran.returncode:
    raise SystemExit(f'{name}: {ran.stderr[-3000:]}')


def work(name: str, folder: pathlib.Path, *, quick: bool) -> None:
  """Trains all cases of a mesh as one of its processes."""
  import jax

  from experiments import digits_mixed, digits_pixels
  from spacetime.sharding import multihost
  from spacetime.training import run
  from tests.helpers import permuted_train, training

  processes, _, order, axes, parts = MESHES[name]
  if processes > 1:
    multihost.join(
      os.environ['JAX_COORDINATOR_ADDRESS'],
      processes=processes,
      process=int(os.environ['JAX_PROCESS_ID']),
    )
  permuted_train.permute([int(number) for number in order.split(',')])
  losses = {}
  for kind, module in {'clips': digits_pixels, 'rows': digits_mixed}.items():
    if kind == 'rows' and 'context' in axes:
      continue  # no axis may split packed rows
    for accumulate in parts[:1] if quick else parts:
      config = module.get_config('tiny')
      config.update_from_flattened_dict(
        {
          'data.dir': str(folder / kind),
          'data.batch_size': 32,
          'train.steps': STEPS,
          'train.accumulate': accumulate,
          'train.evaluate_every': 0,
          'train.sheet_every': 0,
          'train.pca_init_clips': 0,
          'optimizer.name': 'adamw',
        }
        | {f'mesh.{axis}': size for axis, size in axes.items()}
      )
      case = f'{kind} in {accumulate}'
      workdir = folder / f'{_file(name)}_{_file(case)}'
      run.train(config, str(workdir))
      multihost.barrier(case)
      losses[case] = list(training.losses(workdir).values())
  if jax.process_index() == 0:
    (folder / _file(name)).write_text(json.dumps(losses))


def _file(name: str) -> str:
  return name.replace(', ', '_').replace(' ', '_')


if __name__ == '__main__':
  main()
