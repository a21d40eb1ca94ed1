"""Training on packed rows: one program for all sizes, and resume."""

import functools

import jax
import ml_collections
import numpy as np
import pytest

from experiments import digits_mixed
from spacetime.config import networks, parse
from spacetime.config import packing as packing_lib
from spacetime.data import batches
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.training import (
  metrics,
  run,
  setup,
  tasks,
)
from tests.helpers.training import killed_after, limit_devices

pytestmark = pytest.mark.slow


def changed(**values):
  """The tiny config with other values, by their whole names."""
  plain = parse.plain(digits_mixed.get_config('tiny'))
  for path, value in values.items():
    section, *inner = path.split('.')
    at = plain
    for name in (section, *inner[:-1]):
      at = at[name]
    at[inner[-1]] = value
  return ml_collections.ConfigDict(plain)


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
  """Config, networks, task and a loader of rows."""
  folder = str(tmp_path_factory.mktemp('digits'))
  config = changed(**{'data.dir': folder, 'data.clips': 200})
  data = parse.experiment(config).data
  nets = networks.networks(parse.experiment(config))
  splits = data.source.open_splits(data, seed=0)
  tokenizer = tokenizer_lib.train(
    splits.captions, vocab_size=config.text.vocab_size
  )
  patchify = packing_lib.make_patchify(
    parse.experiment(config), nets.autoencoder, nets.dit.config.patch
  )
  loader = batches.make_loader(
    data,
    splits.train,
    tokenizer,
    length=nets.text_length,
    seed=0,
    patchify=patchify,
  )
  return (
    config,
    nets,
    tasks.diffusion_task(parse.experiment(config), nets),
    loader,
  )


@functools.cache
def jitted_init(task):
  return jax.jit(task.init)


def first_params(parts):
  """Parameters of the config's seed."""
  config, _, task, _ = parts
  return jitted_init(task)(jax.random.key(config.seed))


def test_one_program_serves_fifty_batches_of_mixed_sizes(parts):
  _, _, task, loader = parts
  iterator, traced, sizes, padding = iter(loader), [], set(), []
  params = first_params(parts)

  # Parameters are arguments, as in training: a head of zeros that is compiled
  # in is miscomputed by XLA's CPU compiler (jaxlib 0.10), seen without a model:
  # jit(lambda h, x: mean((h @ K + b - x) ** 2, -1)), K and b zeros.
  @jax.jit
  def call(params, batch, key):
    traced.append(key)
    return task.loss(params, {}, batch, key)[0]

  for number in range(50):
    batch = next(iterator)
    sizes |= {
      tuple(grid) for row in batch['grids'] for grid in row if any(grid)
    }
    padding.append(np.mean(batch['segment_ids'] == 0))
    if number % 5 == 0:
      assert 0 < float(call(params, batch, jax.random.key(0))) < 100
  assert len(traced) == call._cache_size() == 1
  assert len(sizes) > 15 and {(1, 2, 3), (3, 3, 4)} <= sizes
  assert np.mean(padding) < 0.1


def test_a_packed_run_resumes_bit_for_bit(tmp_path, parts, monkeypatch):
  limit_devices(monkeypatch, 2)
  # What compiles other programs than the step's is tested elsewhere.
  fewer = ('sheet_every', 'evaluate_every', 'pca_init_clips')
  config = changed(
    **{'data.dir': parts[0].data.dir, 'data.clips': 200},
    **{f'train.{name}': 0 for name in fewer},
    **{'train.checkpoint_every': 1},
  )
  full = run.train(config.copy_and_resolve_references(), str(tmp_path / 'a'))
  workdir = killed_after(tmp_path / 'a', 2, tmp_path / 'b')
  again = run.train(config.copy_and_resolve_references(), str(workdir))
  jax.tree.map(np.testing.assert_array_equal, full.params, again.params)
  jax.tree.map(np.testing.assert_array_equal, full.ema, again.ema)
  first = first_params(parts)
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), full.params, first
  )
  assert all(0 < change < np.inf for change in jax.tree.leaves(moved['dit']))
  lines = metrics.read_metrics(tmp_path / 'b')
  losses = [x['loss'] for x in lines if 'loss' in x]
  assert len(losses) == 4 and np.isfinite(losses).all()
  assert losses[-1] < 0.9 * losses[0]
  assert losses == [
    x['loss'] for x in metrics.read_metrics(tmp_path / 'a') if 'loss' in x
  ]
  assert [x['step'] for x in lines if 'padding' in x] == [1, 2, 3, 4]
  assert all(0 <= x['padding'] < 0.3 for x in lines if 'padding' in x)


@pytest.mark.parametrize(
  'values, text',
  [
    ({'data.packing.kind': 'boxes'}, "kind='boxes': expected one of"),
    (
      {'data.packing.length': 20},
      'data.packing.length=20: expected 24 or more',
    ),
    ({'data.mixed.multiple': (4, 8)}, 'width=40: expected a multiple'),
    ({'data.packing': None}, 'data.packing=None: expected dict'),
    ({'mesh.context': 2}, 'mesh.context=2: expected 1 with packed sequences'),
    (
      {'data.packing': dict(kind='buckets', look_ahead=9)},
      'look_ahead=9: expected 127 or more, for 18 sizes',
    ),
  ],
)
def test_refuses_before_anything_is_written(tmp_path, values, text):
  with pytest.raises(ValueError, match=text):
    setup.check(parse.experiment(changed(**values)), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
