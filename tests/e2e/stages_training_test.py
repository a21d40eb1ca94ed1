"""Training in stages on latents: resumed within a stage, packed or bucketed."""

import jax
import numpy as np
import pytest

from experiments import digits, digits_autoencoder
from spacetime import checkpoint
from spacetime.config import networks, parse
from spacetime.config import packing as packing_lib
from spacetime.data import batches as batches_lib
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.media.pixels import to_video
from spacetime.training import metrics, setup
from spacetime.training import run as run_lib


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """A folder of an untrained compact autoencoder."""
  config = digits_autoencoder.get_config('tiny')
  codec = networks.autoencoder(parse.experiment(config).autoencoder)
  plain = parse.plain(config)
  plain['autoencoder'] |= {
    'latents_mean': [0.0] * codec.z_dim,
    'latents_std': [0.1] * codec.z_dim,
  }
  folder = tmp_path_factory.mktemp('weights') / 'autoencoder'
  params = {'autoencoder': jax.jit(codec.init)(jax.random.key(0))}
  checkpoint.save_weights(folder, params, config=plain)
  return str(folder)


def changed(weights, **values):
  config = digits.get_config('tiny')
  config.autoencoder.weights = weights
  config.data.batch_size = 8  # the tests' devices
  config.update_from_flattened_dict(values)
  return config


def test_a_run_goes_on_within_a_stage(tmp_path, weights):
  judged = {'train.sheet_every': 5, 'train.scored_clips': 4}
  full = run_lib.train(changed(weights, **judged), str(tmp_path / 'a'))
  counted = iter([False, False, True])
  run_lib.train(
    changed(weights), str(tmp_path / 'b'), stop=lambda: next(counted)
  )
  again = run_lib.train(changed(weights), str(tmp_path / 'b'))
  jax.tree.map(np.testing.assert_array_equal, full.params, again.params)
  jax.tree.map(np.testing.assert_array_equal, full.ema, again.ema)
  losses = [
    [x['loss'] for x in metrics.read_metrics(tmp_path / run) if 'loss' in x]
    for run in 'ab'
  ]
  assert len(losses[0]) == 5 and losses[0] == losses[1]
  (scored,) = [
    line
    for line in metrics.read_metrics(tmp_path / 'a')
    if 'world/digit' in line
  ]
  assert scored['step'] == 5 and 0 <= scored['world/digit'] <= 1


def test_rows_of_latents_are_those_of_each_clip(weights):
  rows = dict(kind='rows', length=40, clips=6, frames=12, look_ahead=8)
  config = changed(weights)
  with config.unlocked():
    config.data.packing = rows
  plan = setup.check(parse.experiment(config), str(weights) + '_run')
  data = plan.experiment.data
  splits = data.source.open_splits(data, seed=0)
  tokenizer = tokenizer_lib.train(splits.captions, vocab_size=640)
  loader = batches_lib.make_loader(
    data,
    splits.train,
    tokenizer,
    length=44,
    seed=0,
    patchify=plan.patchify,
    grid=plan.grid,
  )
  iterator = iter(loader)
  batches = [next(iterator) for _ in range(4)]
  # Stage two has clips too: 2x2 cells and 2x4x4.
  sizes = [{tuple(g) for row in b['grids'] for g in row} for b in batches]
  assert sizes[1] <= {(1, 2, 2), (0, 0, 0)}
  late = sizes[2] | sizes[3]
  assert {(1, 2, 2), (2, 4, 4)} <= late
  shift = np.unique(batches[3]['shift'][batches[3]['grids'][..., 0] > 0])
  assert shift.tolist() == [2.0]
  frames = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), np.uint8)
  z_Bfhwc = plan.autoencoder.encode(
    plan.frozen['autoencoder'], to_video(frames[None])
  )
  np.testing.assert_allclose(
    plan.patchify.patches(frames), z_Bfhwc.reshape(32, 16), atol=1e-4
  )
  loss, report = jax.jit(plan.task.loss)(
    jax.jit(plan.task.init)(jax.random.key(0)),
    plan.frozen,
    batches[3],
    jax.random.key(1),
  )
  assert 0 < float(loss) < 100 and float(report['padding'].value) < 0.9
  assert (
    packing_lib.make_patchify(
      plan.experiment, plan.autoencoder, (1, 1, 1)
    ).patches
    is None
  )
