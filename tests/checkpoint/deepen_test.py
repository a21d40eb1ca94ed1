"""Copies of blocks that add nothing at first."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spacetime
from experiments import digits
from spacetime import SettingError, sharding
from spacetime.checkpoint import deepen, export, init_weights
from spacetime.config import networks, parse
from spacetime.training import run, setup
from tests.helpers import finetuned


@pytest.mark.parametrize(
  'layers, deeper, after',
  [
    (6, 7, [5]),
    (6, 9, [1, 3, 5]),
    (6, 12, [0, 1, 2, 3, 4, 5]),
    (4, 7, [0, 1, 3]),
    (1, 2, [0]),
  ],
)
def test_copies_are_evenly_spaced(layers, deeper, after):
  copied = deepen.copied_blocks(layers, deeper)
  assert copied == after
  assert len(set(copied)) == deeper - layers


@pytest.mark.parametrize('deeper', [2, 3, 7])
def test_refuses_other_numbers(deeper):
  with pytest.raises(ValueError, match=f'expected 4 to 6 .*, not {deeper}$'):
    deepen.copied_blocks(3, deeper)


@pytest.fixture(scope='module')
def wan(tmp_path_factory):
  return finetuned.write(tmp_path_factory.mktemp('deepen') / 'all')


def config(wan, layers, **values):
  changed = finetuned.config(wan)
  changed.update_from_flattened_dict({'model.layers': layers} | values)
  return changed


@pytest.mark.slow
def test_computes_the_same_and_learns(wan):
  layers = finetuned.config(wan).model.layers
  mesh = sharding.single_device_mesh()
  shallow, deep = (
    networks.networks(parse.experiment(config(wan, count)))
    for count in (layers, 2 * layers - 1)
  )
  base = init_weights.open_base(str(wan / 'wan'), deep)
  before, after = base.load(shallow, mesh), base.load(deep, mesh)
  z = jax.random.normal(jax.random.key(0), (1, 2, 4, 4, 3))
  t, text = jnp.full((1, 1), 0.7), jnp.ones((1, 3, 12))

  def squares(params, nets):
    flow = nets.transform(params, z, t, text)
    return jnp.square(flow - 1).sum(), flow

  expected = jax.jit(shallow.transform)(before, z, t, text)
  grad, flow = jax.jit(jax.grad(squares, has_aux=True), static_argnums=1)(
    after, deep
  )
  np.testing.assert_allclose(flow, expected, atol=2e-6)
  blocks = grad['dit']['blocks']
  for output in deepen.OUTPUTS:
    first, second = output.split('/') if '/' in output else (output, None)
    leaf = blocks[first][second] if second else blocks[first]
    # All blocks learn, the copies as well.
    assert (np.abs(leaf['kernel']).max(axis=(1, 2)) > 0).all()


@pytest.mark.slow
def test_a_deeper_run(tmp_path):
  base = digits.get_config('tiny')
  base.train.steps, base.data.batch_size = 1, 8
  run.train(base, str(tmp_path / 'base'))
  deep = digits.get_config('tiny')
  deep.train.steps, deep.data.batch_size = 2, 8
  deep.model.layers = 3
  workdir = str(tmp_path / 'deep')
  stops = iter([True])
  first = run.train(
    deep,
    workdir,
    checkpoint=str(tmp_path / 'base'),
    stop=lambda: next(stops),
  )
  assert int(first.step) == 1
  last = run.train(deep, workdir)  # resumes from its own weights
  assert int(last.step) == 2
  kernel = last.params['dit']['blocks']['mlp_out']['kernel']
  assert kernel.shape[0] == 3
  assert (np.abs(kernel).max(axis=(1, 2)) > 0).all()
  export.export(workdir, tmp_path / 'out')


@pytest.mark.slow
def test_refuses_runs(wan, tmp_path):
  layers = finetuned.config(wan).model.layers
  source = str(wan / 'wan')

  def check(count, **values):
    experiment = parse.experiment(config(wan, count, **values))
    setup.check(experiment, str(tmp_path / 'run'), init_from=source)

  check(2 * layers)
  with pytest.raises(
    SettingError,
    match=f'^model.layers={2 * layers + 1}: expected at most {2 * layers}, '
    f'twice as many as {source} has',
  ):
    check(2 * layers + 1)
  with pytest.raises(ValueError, match=f'model.layers=1, there {layers};'):
    check(1)
  with pytest.raises(
    ValueError, match=f'model.layers={layers + 1}, there {layers};'
  ):
    check(layers + 1, **{'lora.rank': 2})
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_published_model_is_exported_with_its_layers(wan, tmp_path):
  layers = finetuned.config(wan).model.layers
  workdir, out = str(tmp_path / 'run'), tmp_path / 'out'
  settings = config(wan, layers + 1, **{'train.steps': 1})
  run.train(settings, workdir, checkpoint=str(wan / 'wan'))
  export.export(workdir, out)
  saved = json.loads((out / 'transformer' / 'config.json').read_text())
  assert saved['num_layers'] == layers + 1
  clip = spacetime.load(str(out), progress=False)(
    'a red 3', steps=1, frames=5, size=(32, 16)
  )
  assert clip.frames.shape == (5, 16, 32, 3)
