"""Multi-process runs: losses of one process, files of the first."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments import digits_pixels
from spacetime import sharding
from spacetime.sharding import multihost
from spacetime.training import metrics, run
from tests.helpers import training, xla_flags

ROOT = pathlib.Path(__file__).parents[2]
VALUES = {
  'data.batch_size': 8,
  'train.steps': 4,
  'train.sheet_every': 0,
  'train.evaluate_every': 2,
  'train.held_out': 8,
  'train.pca_init_clips': 0,
  'optimizer.name': 'adamw',
}


def config(folder, **values):
  config_dict = digits_pixels.get_config('tiny')
  config_dict.update_from_flattened_dict(
    {'data.dir': str(folder / 'data')} | VALUES | values
  )
  return config_dict


def read_losses(workdir):
  """Returns losses by step, and held-out losses."""
  lines = metrics.read_metrics(workdir)
  losses = {line['step']: line['loss'] for line in lines if 'loss' in line}
  held_out = [x['held_out/loss'] for x in lines if 'held_out/loss' in x]
  return losses, held_out


V5P = '0,1,4,5,2,3,6,7'  # two hosts of four chips of a cube


def pod(
  folder,
  workdir,
  *,
  processes,
  devices,
  module=('permuted_train', V5P),
  **values,
):
  """Runs training as several processes, with devices in the order of v5p."""
  values = {'data.dir': str(folder / 'data')} | VALUES | values
  return subprocess.run(
    [
      sys.executable,
      'launch/local_pod.py',
      f'--processes={processes}',
      f'--devices={devices}',
      '--',
      sys.executable,
      '-m',
      f'tests.helpers.{module[0]}',
      *module[1:],
      '--config=experiments/digits_pixels.py:tiny',
      f'--workdir={workdir}',
      f'--compilation_cache={ROOT}/.cache/jax_tests',
      *(f'--config.{name}={value}' for name, value in values.items()),
    ],
    cwd=ROOT,
    env=dict(
      os.environ,
      PYTHONPATH=str(ROOT),
      XLA_FLAGS=xla_flags.COMPILE_QUICKLY,
      JAX_DEFAULT_MATMUL_PRECISION='float32',
    ),
    capture_output=True,
    text=True,
    timeout=500,
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('cluster')


@pytest.fixture(scope='module')
def single(folder):
  """A run of one process with eight devices: (state, losses)."""
  state = run.train(config(folder), str(folder / 'single'))
  return state, read_losses(folder / 'single')


@pytest.fixture(scope='module')
def two(folder):
  """The first two of four steps by two processes of four devices each."""
  ran = pod(
    folder,
    folder / 'two',
    processes=2,
    devices=4,
    # As if stopped after two of four: the decay would start later.
    **{'train.steps': 2, 'optimizer.decay': 0.0, 'optimizer.warmup': 1},
  )
  assert ran.returncode == 0, ran.stderr[-3000:]
  return folder / 'two', ran.stderr


@pytest.mark.e2e
def test_two_processes_equal_one(two, single):
  losses, held_out = read_losses(two[0])
  assert set(losses) == {1, 2}
  assert losses == pytest.approx({k: single[1][0][k] for k in (1, 2)}, rel=1e-6)
  assert held_out == pytest.approx(single[1][1][:1], rel=1e-6)


@pytest.mark.e2e
def test_only_first_process_writes(two):
  workdir, stderr = two
  assert len(list((workdir / 'tensorboard').iterdir())) == 1
  assert stderr.count('goodput ') == 1 and '[1] goodput' not in stderr
  ledger = json.loads((workdir / 'goodput.json').read_text())
  assert (ledger['taken'], ledger['starts']) == (2, 1)
  assert not (workdir / 'run.lock').exists()
  names = {path.name for path in (workdir / 'checkpoints/2/data').iterdir()}
  assert {'process_0-of-2.json', 'process_1-of-2.json'} <= names


@pytest.mark.e2e
@pytest.mark.parametrize('count', [1, 8])
def test_one_process_resumes_from_two(two, single, folder, count, monkeypatch):
  """On one device or eight; the data continues too."""
  workdir = folder / f'on_{count}'
  shutil.copytree(two[0], workdir)
  training.limit_devices(monkeypatch, count)
  state = run.train(config(folder), str(workdir))
  assert int(state.step) == 4
  assert read_losses(workdir)[0] == pytest.approx(single[1][0], rel=1e-5)
  for a, b in zip(
    jax.tree.leaves(state.params),
    jax.tree.leaves(single[0].params),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.e2e
def test_an_error_of_one_process_saves_all(folder):
  workdir = folder / 'failed'
  ran = pod(
    folder,
    workdir,
    processes=2,
    devices=1,
    module=('failing_train', '1', '2'),
    **{'train.evaluate_every': 0},
  )
  assert ran.returncode == 2, ran.stderr[-3000:]
  assert '[1] error: batch 2 cannot be read' in ran.stderr
  assert 'error: the data of another process failed' in ran.stderr
  assert ran.stderr.count('the data failed after step 2, which is saved') == 2
  assert set(read_losses(workdir)[0]) == {1, 2}
  step = workdir / 'checkpoints/2'
  positions = [path.read_text() for path in step.glob('data/process_*')]
  assert len(positions) == 2 and positions[0] == positions[1]


def test_a_signal_stops_after_a_step_and_interrupts_before_the_first():
  signals = signal.SIGINT, signal.SIGTERM
  handlers = [signal.getsignal(number) for number in signals]
  try:
    for number in signals:
      stop = multihost.Stop()
      with pytest.raises(KeyboardInterrupt, match='nothing to save'):
        signal.raise_signal(number)
      assert stop.preempted == (number == signal.SIGTERM)
      stop = multihost.Stop()
      assert not stop()
      signal.raise_signal(number)
      assert stop() and stop.preempted == (number == signal.SIGTERM)
      with pytest.raises(SystemExit):
        signal.raise_signal(number)
  finally:
    for number, handler in zip(signals, handlers, strict=True):
      signal.signal(number, handler)


def test_join_refuses_incomplete_settings():
  for settings, text in (
    (('', 2, 0), "coordinator='': expected HOST:PORT of process 0, with"),
    (('here', 2, 0), "coordinator='here': expected HOST:PORT"),
    (('here:12', 2, 2), 'process_id=2: expected 0 to one less'),
    (('here:12', None, 0), '`num_processes`=None'),
    (('auto', None, None), "coordinator='auto': .* no cluster was found"),
  ):
    with pytest.raises(ValueError, match=text):
      multihost.join(settings[0], processes=settings[1], process=settings[2])


def test_put_replicated_batch_shards_rows():
  mesh = sharding.make_mesh(sharding.MeshConfig())
  rows = {'x': np.arange(16.0).reshape(8, 2)}
  sharded = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
  put = multihost.put_replicated_batch(rows, sharded)['x']
  assert put.addressable_shards[0].data.shape == (1, 2)
  np.testing.assert_array_equal(put, rows['x'])
