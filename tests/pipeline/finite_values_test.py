"""Values that are not finite end in an error at the stage that made them."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from spacetime import checkpoint, sharding
from spacetime.checkpoint import convert, finite, load
from spacetime.checkpoint.interop import (
  folders,
  lora_apply,
  lora_changes,
  networks,
)
from spacetime.pipeline import prompt_embeds
from spacetime.pipeline.engine import Engine
from tests.helpers import published_folder, sampling

SIZE = (5, 16, 32)


@pytest.mark.parametrize(
  'dtype', ['float32', 'float16', 'float64', ml_dtypes.bfloat16]
)
def test_all_finite(dtype):
  array = np.zeros((7, finite.STEP // 4), dtype)
  array[3] = np.finfo(np.float16).max
  assert finite.all_finite(array) and finite.all_finite(array.T)
  for value in (np.nan, np.inf, -np.inf):
    changed = array.copy()
    changed[-1, -1] = value
    assert not finite.all_finite(changed)
    assert not finite.all_finite(changed.T)
  assert finite.all_finite(np.arange(3)) and finite.all_finite(array[:0])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return published_folder.write(tmp_path_factory.mktemp('finite') / 'wan')


@pytest.fixture(scope='module')
def model(folder):
  return load.open_model(str(folder), mesh=sharding.single_device_mesh())


def broken(model, root, path):
  """The model with one NaN in a parameter, behind the check of files."""

  def read():
    params = model.read(root)
    *parents, last = path.split('.')
    tree = params
    for name in parents:
      tree = tree[name]
    tree[last] = tree[last].at[(0,) * tree[last].ndim].set(np.nan)
    return params

  readers = dict(model.readers) | {root: read}
  return dataclasses.replace(model, readers=readers)


@pytest.mark.slow
@pytest.mark.parametrize(
  'root, path, text',
  [
    ('text', 'norm_out.scale', "prompt embeddings of 'a red 3': expected fin"),
    ('dit', 'head.bias', 'latents after sampling: .*check `lora`'),
    ('autoencoder', 'decoder.conv_in.bias', 'frames after decoding: expected'),
  ],
)
def test_stages_of_sampling(root, path, text, model):
  with pytest.raises(ValueError, match=text):
    sampling.frames(broken(model, root, path), ['a red 3'], size=SIZE, steps=2)


def test_latents_of_a_video(model):
  engine = Engine(broken(model, 'autoencoder', 'encoder.conv_in.bias'))
  frames = np.zeros((1, *SIZE, 3), np.uint8)
  with pytest.raises(ValueError, match='latents of the conditioning video'):
    engine.encode(frames, engine.read('autoencoder'))
  (text_SY,) = prompt_embeds.encode(engine, ['snow'])
  assert np.isfinite(np.float32(text_SY)).all()


def test_a_lora_that_overflows(model):
  change = lora_changes.Plain(np.full(12, 3e38, np.float32), 2.0)
  network = networks.of(published_folder.TRANSFORMER)
  adapter = lora_apply.Adapter(network, {('head.bias', None): [change]})
  tuned = dataclasses.replace(model, adapters={'dit': ((adapter, 1e3),)})
  with pytest.raises(ValueError, match='latents after sampling'):
    sampling.frames(tuned, ['a red 3'], size=SIZE, steps=2)


def test_weights_folders(folder, tmp_path):
  ours = tmp_path / 'ours'
  convert.to_weights(folders.open_pipeline(folder), ours)
  path = ours / checkpoint.WEIGHTS
  arrays = safetensors.numpy.load_file(path)
  arrays['dit/blocks/mlp_in/kernel'][1, 2, 3] = np.nan
  safetensors.numpy.save_file(arrays, path)
  model = load.open_model(str(ours), mesh=sharding.single_device_mesh())
  assert model.read('text')
  with pytest.raises(
    ValueError, match=r'weights.safetensors: dit/blocks/mlp_in/kernel: expected'
  ):
    model.read('dit')
