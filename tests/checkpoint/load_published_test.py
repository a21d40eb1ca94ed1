"""Models opened from folders in the layout of diffusers."""

import json

import jax
import jax.numpy as jnp
import pytest

from spacetime import sharding
from spacetime.checkpoint import convert, hub, load
from spacetime.checkpoint.interop import folders
from spacetime.checkpoint.locate import locate
from spacetime.config import samplers
from spacetime.diffusion import schedules
from tests.helpers import published_folder, sampling


def open_model(path):
  return load.open_model(str(path), mesh=sharding.single_device_mesh())


@pytest.mark.slow
@pytest.mark.parametrize(
  'vae', [published_folder.VAE, published_folder.VAE22], ids=['2.1', '2.2']
)
def test_samples_from_a_published_folder(vae, tmp_path):
  model = open_model(published_folder.write(tmp_path / 'tiny', vae=vae))
  time, height, width = model.networks.autoencoder.stride
  size = (1 + time, 2 * height, 4 * width)
  videos = sampling.frames(model, ['a red 3'], size=size, steps=3)
  assert videos[0].shape == (*size, 3)
  assert videos[0].std() > 1


@pytest.mark.parametrize(
  'vae, latents',
  [(published_folder.VAE, 41), (published_folder.VAE22, 61)],
  ids=['2.1', '2.2'],
)
def test_positions_beyond_the_published_length(vae, latents, tmp_path):
  model = open_model(published_folder.write(tmp_path / 'tiny', vae=vae))
  settings = model.experiment.sampling.with_changes(rope_scaling='ntk')
  sampler = samplers.sampler(model.experiment, model.networks, settings)
  # 81 and 121 frames; these small autoencoders halve the time.
  assert model.networks.autoencoder.stride[0] == 2
  assert sampler.transform.__self__.dit.scaling.trained == latents


def test_the_schedule_is_the_published_one(tmp_path):
  model = open_model(published_folder.write(tmp_path / 'tiny'))
  settings = model.experiment.sampling.with_changes(steps=7)
  sampler = samplers.sampler(model.experiment, model.networks, settings)
  grid = schedules.wan_unipc_schedule(7, shift=5.0)
  assert sampler.schedule == grid
  with pytest.raises(ValueError, match="solver='heun': expected"):
    model.experiment.sampling.with_changes(solver='heun')
  with pytest.raises(ValueError, match="schedule='cosine': expected"):
    model.experiment.sampling.with_changes(schedule='cosine')


@pytest.mark.parametrize('data', [1, 4])
def test_stored_dtypes_on_a_mesh(data, tmp_path):
  source = published_folder.write(tmp_path / 'tiny', dtype=jnp.bfloat16)
  ours = tmp_path / 'ours'
  half = jnp.dtype('bfloat16')
  convert.to_weights(folders.open_pipeline(source), ours, dtype=half)
  mesh = sharding.make_mesh(
    sharding.MeshConfig(data=1, fsdp=data), devices=jax.devices()[:data]
  )
  for path in (source, ours):
    model = load.open_model(str(path), mesh=mesh)
    assert model.experiment.model.dtype == 'bfloat16'
    for root, dtype in (('dit', half), ('text', half), ('autoencoder', 'f4')):
      leaves = jax.tree.leaves(model.read(root))
      assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}, root
      assert all(len(leaf.devices()) == data for leaf in leaves)


def test_another_model_is_refused_before_anything_is_read(tmp_path):
  ours = tmp_path / 'ours'
  source = published_folder.write(tmp_path / 'tiny')
  convert.to_weights(folders.open_pipeline(source), ours)
  config = json.loads((ours / 'config.json').read_text())
  config['model']['mlp'] += 1
  (ours / 'config.json').write_text(json.dumps(config))
  mesh = sharding.single_device_mesh()
  with pytest.raises(ValueError, match='of other shapes: dit/'):
    load.open_model(str(ours), mesh=mesh)


def test_a_repository_by_name(monkeypatch, tmp_path):
  monkeypatch.setattr(hub, 'fetch', lambda name: tmp_path / name)
  assert locate('some/one').folder == str(tmp_path / 'some/one')
