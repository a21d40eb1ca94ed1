"""Export of runs that started from weights."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from spacetime import checkpoint, sharding
from spacetime.checkpoint import export, load
from spacetime.checkpoint.interop import lora, parts
from spacetime.config import parse
from spacetime.models.transformer import lora as lora_lib
from spacetime.training import init_state, setup
from tests.helpers import finetuned, published_folder

LORA = {'lora.rank': 2, 'lora.alpha': 6.0}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A published folder with its cache, FOLDER/whole and FOLDER/pairs."""
  folder = finetuned.write(tmp_path_factory.mktemp('exports') / 'all')
  for name, values in (('whole', {}), ('pairs', LORA)):
    save_run(folder, folder / name, values)
  return folder


def save_run(folder, workdir, values):
  """A run of one step whose average is random."""
  experiment_config = finetuned.config(folder, **values)
  ready = setup.check(
    parse.experiment(experiment_config),
    str(workdir),
    init_from=str(folder / 'wan'),
  )
  checkpoint.write_config(workdir, ready.experiment.values, tokenizer=b'pieces')
  at = init_state.init_state(ready, None, jax.random.key(0))
  rng = np.random.default_rng(0)
  ema = jax.tree.map(
    lambda leaf: jax.device_put(
      np.float32(0.1 * rng.normal(size=leaf.shape)), leaf.sharding
    ),
    at.ema,
  )
  with checkpoint.Checkpoints(workdir) as checkpoints:
    checkpoints.save(1, dict(params=at.params, ema=ema), wait=True)


def mesh():
  return sharding.single_device_mesh()


def opened(folder):
  return parts.open_part(folder, 'transformer').load(mesh())


def ema(workdir, root):
  saved = checkpoint.saved_shapes(
    checkpoint.absolute(workdir) / 'checkpoints/1'
  )
  tree = {}
  for key, shape in saved.items():
    if key.startswith('ema/'):
      names = key.split('/')[1:]
      lora.layouts.put(tree, names, jax.ShapeDtypeStruct(shape, np.float32))
  return checkpoint.load_params(workdir, tree)[root]


def assert_equal(a, b, atol=0.0):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=atol, rtol=0)


@pytest.mark.slow
def test_a_tuned_transformer_replaces_that_of_the_folder(folder, tmp_path):
  export.export(str(folder / 'whole'), tmp_path / 'out')
  assert_equal(opened(tmp_path / 'out'), ema(folder / 'whole', 'dit'))
  for name in ('vae', 'text_encoder'):
    actual = published_folder.tensors(tmp_path / 'out' / name)
    expected = published_folder.tensors(folder / 'wan' / name)
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[k], expected[k]) for k in expected)
  model = load.open_model(str(tmp_path / 'out'), mesh=mesh())
  assert model.networks.dit.config.width == 24


@pytest.mark.slow
def test_pairs_are_merged_into_a_copy(folder, tmp_path):
  export.export(str(folder / 'pairs'), tmp_path / 'out', lora='merged')
  pairs = ema(folder / 'pairs', 'lora')
  base = opened(folder / 'wan')
  expected = lora_lib.merge(base, pairs, scale=3.0)
  assert_equal(opened(tmp_path / 'out'), expected, atol=1e-6)
  kernel = expected['blocks']['mlp_out']['kernel']
  assert np.abs(kernel - base['blocks']['mlp_out']['kernel']).max() > 0.01
  export.export(
    str(folder / 'pairs'), tmp_path / 'half', lora='merged', dtype='bfloat16'
  )
  part = parts.open_part(tmp_path / 'half', 'transformer')
  assert part.dtype == 'bfloat16'


@pytest.mark.parametrize('dialect', lora.DIALECTS)
def test_pairs_alone(dialect, folder, tmp_path):
  export.export(str(folder / 'pairs'), tmp_path / 'out', lora=dialect)
  path = tmp_path / 'out' / lora.FILES[dialect]
  actual = lora.read(path, published_folder.TRANSFORMER)
  base = opened(folder / 'wan')
  expected = lora_lib.merge(base, ema(folder / 'pairs', 'lora'), scale=3.0)
  assert_equal(actual.merge(base), expected, atol=1e-6)
  # Three kernels of each of two layers, and nothing else.
  count = len(safetensors.numpy.load_file(path))
  has_alpha = dialect in ('original', 'kohya', 'videox_fun')
  assert count == 6 * (3 if has_alpha else 2)


def test_refuses(folder, tmp_path):
  out = tmp_path / 'out'
  cases = {
    'lora=None: expected one of': ('pairs', {}),
    "lora='merged': expected none": (
      'whole',
      {'lora': 'merged'},
    ),
    'nowhere': ('whole', {'base': 'nowhere'}),
  }
  for text, (name, values) in cases.items():
    with pytest.raises(ValueError, match=text):
      export.export(str(folder / name), out, **values)
  changed = published_folder.write(tmp_path / 'other')
  tensors = published_folder.drawn(published_folder.TRANSFORMER)
  published_folder.write_part(
    changed / 'transformer',
    published_folder.TRANSFORMER,
    tensors={name: tensor + 1 for name, tensor in tensors.items()},
  )
  with pytest.raises(ValueError, match='has other weights .*set `base`'):
    export.export(str(folder / 'pairs'), out, lora='merged', base=str(changed))
  assert not out.exists()
  for name, more in (('whole', ''), ('pairs', ' --lora=merged')):
    with pytest.raises(ValueError, match=f'spacetime export .*{more} --out'):
      load.open_model(str(folder / name), mesh=mesh())


def test_a_run_remembers_what_it_started_from(folder):
  for name in ('whole', 'pairs'):
    source = json.loads((folder / name / 'config.json').read_text())['source']
    assert source['path'] == str(folder / 'wan')
    assert {len(source[k]) for k in ('fingerprint', 'autoencoder', 'text')} == {
      64
    }


@pytest.mark.slow
def test_a_bundled_model_takes_its_autoencoder_along(tmp_path):
  """Its config names another bundled model, not a folder within it."""
  export.export('digits', tmp_path / 'out')
  config = checkpoint.read_config(tmp_path / 'out')
  assert config['autoencoder']['weights'] == 'autoencoder'
  original, copy = (
    load.open_model(path, mesh=mesh()) for path in ('digits', tmp_path / 'out')
  )
  assert copy.weights_hash == original.weights_hash
  for a, b in zip(
    jax.tree.leaves(copy.read('autoencoder')),
    jax.tree.leaves(original.read('autoencoder')),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
