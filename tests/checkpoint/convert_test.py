"""Published folder -> weights folder -> published folder, end to end."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from spacetime import checkpoint, sharding
from spacetime.checkpoint import convert, load
from spacetime.checkpoint.interop import folders, sections
from spacetime.config import networks
from tests.helpers import published_folder

ROOT = pathlib.Path(__file__).parents[2]
PARTS = ('transformer', 'vae', 'text_encoder')


def mesh():
  return sharding.single_device_mesh()


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp('convert') / 'published'
  return published_folder.write(folder)


def python(*arguments):
  environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu')
  return subprocess.run(
    [sys.executable, '-m', 'spacetime', 'convert', *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.slow
def test_the_command_converts_there_and_back(source, tmp_path):
  there, back = tmp_path / 'ours', tmp_path / 'back'
  for a, b in ((source, there), (there, back)):
    ran = python(f'--source={a}', f'--target={b}')
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert f'{b}: written' in ran.stdout
    assert 'convert: 100%' in ran.stderr
  for part in PARTS:
    actual = published_folder.tensors(back / part)
    expected = published_folder.tensors(source / part)
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
      assert actual[name].dtype == tensor.dtype
      assert actual[name].tobytes() == tensor.tobytes(), name
    values = json.loads((back / part / 'config.json').read_text())
    source_values = json.loads((source / part / 'config.json').read_text())
    del source_values['_diffusers_version']
    assert values == source_values
  for name in ('model_index.json', folders.SCHEDULER, 'tokenizer/spiece.model'):
    text, source_values = ((d / name).read_bytes() for d in (back, source))
    same = (
      text == source_values
      if name.endswith('model')
      else (json.loads(text) == json.loads(source_values))
    )
    assert same, name
  ran = python(f'--source={source}', f'--target={there}')
  assert ran.returncode == 2
  assert 'exists already: nothing is overwritten' in ran.stderr


def test_the_weights_folder_is_the_model(source, tmp_path):
  """Loaded by the door of every bundled model, and equal in each parameter."""
  pipeline = folders.open_pipeline(source)
  convert.to_weights(pipeline, tmp_path / 'ours')
  model = load.open_model(str(tmp_path / 'ours'), mesh=mesh())
  assert model.readers.keys() == pipeline.parts.keys()
  for root, part in pipeline.parts.items():
    tree, direct = model.read(root), part.load(mesh())
    assert jax.tree.structure(direct) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, direct, tree)
  tokens = model.tokenizer.encode('a red 3', length=model.networks.text_length)
  assert tokens.shape == (512,)
  grid = networks.clip_geometry(model.experiment.data, model.networks)
  assert (grid.frames, grid.height, grid.width) == (81, 480, 832)
  sampling = model.experiment.sampling
  assert (sampling.solver, sampling.shift) == ('unipc', 5.0)
  assert model.networks.autoencoder.config == published_folder.VAE
  assert model.networks.dit.config == published_folder.TRANSFORMER


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
  source = published_folder.write(tmp_path / 'source')
  other = dataclasses.replace(published_folder.TEXT, vocab_size=300)
  published_folder.write_part(source / 'text_encoder', other)
  pipeline = folders.open_pipeline(source)
  with pytest.raises(ValueError, match='pieces, .* embedding of 300 rows'):
    convert.to_weights(pipeline, tmp_path / 'ours')
  assert [p.name for p in tmp_path.iterdir()] == ['source']


def test_dtype_spares_the_autoencoder_and_what_float32_computes(
  source, tmp_path
):
  there, back = tmp_path / 'ours', tmp_path / 'back'
  pipeline = folders.open_pipeline(source)
  convert.to_weights(pipeline, there, dtype=jnp.dtype('bfloat16'))
  actual = safetensors.numpy.load_file(there / checkpoint.WEIGHTS)
  for name, array in actual.items():
    keeps_dtype = any(
      part in ('modulation', 'head_modulation', 'time_in', 'norm_cross')
      for part in name.split('/')
    ) or name.startswith('dit/time_out')
    assert array.dtype == (np.float32 if keeps_dtype else jnp.bfloat16), name
  codec = safetensors.numpy.load_file(there / 'autoencoder/weights.safetensors')
  assert {a.dtype for a in codec.values()} == {np.dtype(np.float32)}
  assert checkpoint.read_config(there)['model']['dtype'] == 'bfloat16'
  convert.to_published(there, back, limit=10_000)
  index = json.loads(
    (
      back / 'transformer/diffusion_pytorch_model.safetensors.index.json'
    ).read_text()
  )
  assert len(set(index['weight_map'].values())) > 1
  reopened = folders.open_pipeline(back)
  assert reopened.transformer.dtype == jnp.bfloat16
  stored = published_folder.tensors(source / 'transformer')
  name = 'blocks.1.ffn.net.2.weight'
  np.testing.assert_array_equal(
    published_folder.tensors(back / 'transformer')[name],
    stored[name].astype(jnp.bfloat16),
  )


def test_refuses_what_it_cannot_convert(source, tmp_path):
  ours = tmp_path / 'ours'
  convert.to_weights(folders.open_pipeline(source), ours)
  path = ours / checkpoint.CONFIG
  config = json.loads(path.read_text())

  def refused(text, **changes):
    path.write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=text):
      convert.to_published(ours, tmp_path / 'back')
    assert not (tmp_path / 'back').exists()

  refused('flow.prediction=.sample.', flow={'prediction': 'sample'})
  refused('model.theta=100', model=config['model'] | {'theta': 100.0})
  refused(
    'model.pos_embed_frequencies=6',
    model=config['model'] | {'pos_embed_frequencies': 6},
  )
  refused(
    r'the parameters do not fit this transformer; .*other shapes: '
    r'blocks.mlp_in.bias \(2, 40\), expected \(2, 41\)',
    model=config['model'] | {'mlp': 41},
  )
  refused(
    "autoencoder.kind='identity': expected the weights",
    autoencoder={'kind': 'identity', 'time': 4},
  )
  refused("holds stage 'autoencoder'", stage='autoencoder')


def test_schedules_that_are_not_of_a_flow_are_refused():
  scheduler = folders.SCHEDULER_CONFIG
  assert sections.schedule(scheduler, 'here') == (3.0, 'unipc')
  euler = {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'shift': 7.0}
  assert sections.schedule(euler, 'here') == (7.0, 'euler')
  for change in ({'use_flow_sigmas': False}, {'_class_name': 'DDIMScheduler'}):
    with pytest.raises(ValueError, match='here: scheduler .*of a flow model'):
      sections.schedule(scheduler | change, 'here')


@pytest.mark.slow
def test_the_command_refuses_bad_flags(tmp_path):
  ran = python(f'--source={tmp_path}')
  assert 'error: --target: expected a folder' in ran.stderr
  ran = python(f'--source={tmp_path}', f'--target={tmp_path}', '--shard_gb=0')
  assert '--shard_gb=0.0: expected more than 0' in ran.stderr
  ran = python(f'--source={tmp_path}', f'--target={tmp_path / "x"}')
  assert 'expected a folder with model_index.json, as' in ran.stderr
