"""--checkpoint takes a folder as diffusers writes it."""

import jax
import numpy as np
import published_folder
import pytest

from spacetime import build, generate, pretrained, sharding, solver
from spacetime import config as config_lib
from spacetime.interop import hub


def load(path):
  mesh = sharding.make_mesh(
    sharding.MeshConfig(data=1), devices=jax.devices()[:1]
  )
  return pretrained.load(str(path), mesh=mesh)


@pytest.mark.parametrize(
  'vae', [published_folder.VAE, published_folder.VAE22], ids=['2.1', '2.2']
)
def test_samples_from_a_published_folder(vae, tmp_path):
  model = load(published_folder.write(tmp_path / 'tiny', vae=vae))
  time, height, width = model.networks.autoencoder.stride
  size = (1 + time, 2 * height, 4 * width)
  videos = generate.sample(
    model,
    ['a red 3'],
    grid=build.grids(model.config, model.networks, size),
    settings=config_lib.sampling(model.config, steps=3),
  )
  assert videos[0].shape == (*size, 3)
  assert videos[0].std() > 1


def test_the_schedule_is_the_published_one(tmp_path):
  model = load(published_folder.write(tmp_path / 'tiny'))
  settings = config_lib.sampling(model.config, steps=7)
  sampler = build.sampler(model.config, model.networks, settings)
  grid = solver.wan_unipc_grid(7, shift=5.0)
  assert (sampler.levels, sampler.told) == (grid.levels, grid.told)
  with pytest.raises(ValueError, match="'published' with solver 'heun'"):
    config_lib.sampling(model.config, solver='heun')
  with pytest.raises(ValueError, match="schedule='cosine': expected"):
    config_lib.sampling(model.config, schedule='cosine')


def test_even_levels_are_told_as_they_are():
  grid = solver.schedule('even', 5, shift=2.0, solver='heun')
  np.testing.assert_array_equal(grid.levels, solver.time_grid(5, shift=2.0))
  assert grid.told == grid.levels[:-1]


def test_a_repository_by_name(monkeypatch, tmp_path):
  monkeypatch.setattr(hub, 'fetch', lambda name: tmp_path / name)
  assert build.resolve('some/one') == str(tmp_path / 'some/one')
