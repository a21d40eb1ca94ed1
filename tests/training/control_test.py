"""Training of models with control blocks (VACE)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import sharding
from spacetime.checkpoint import load
from spacetime.checkpoint.interop import parts
from spacetime.config import parse
from spacetime.data import latent_cache
from spacetime.diffusion import conditioning
from spacetime.media import video_reader
from spacetime.media.pixels import to_video
from spacetime.training import run, setup
from tests.helpers import finetuned, published_folder

CONTROL = {
  'control_layers': (0,),
  'control_channels': 2 * published_folder.VAE.z_dim + 4 * 4,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return finetuned.write(tmp_path_factory.mktemp('control') / 'all', **CONTROL)


def config(folder, **values):
  result = finetuned.config(folder, **values)
  with result.unlocked():
    result.model.update(CONTROL)
    result.optimizer.freeze = ('dit/(?!control).*',)
  return result


@pytest.mark.slow
def test_a_cache_holds_the_latents_of_known_pixels(folder):
  cache = latent_cache.Cache(folder / 'cache')
  assert cache.info.control == CONTROL['control_channels']
  record = cache.split('train')[3]['control_latents']
  video = to_video(
    video_reader.read_video(
      folder / 'clips/clip3.mp4', frames=5, height=16, width=32, fps=8
    )
  )
  known_FHW = conditioning.draw_known(
    np.random.default_rng((0, 3)), video.shape[:3]
  )
  opened = load.open_model(
    str(folder / 'wan'), mesh=sharding.single_device_mesh()
  )
  nets, frozen = opened.networks, {'autoencoder': opened.read('autoencoder')}
  known = jnp.where(known_FHW[..., None], video, 0)
  z = jax.jit(nets.encode)(frozen, jnp.stack([known, jnp.zeros_like(known)]))
  mask = conditioning.control_mask(~known_FHW, stride=nets.autoencoder.stride)
  np.testing.assert_allclose(
    record, np.concatenate([*z, mask], axis=-1), atol=1e-5
  )


@pytest.mark.slow
def test_a_run_trains_the_control_blocks(folder, tmp_path):
  settings = config(folder, **{'train.steps': 2})
  state = run.train(
    settings, str(tmp_path / 'run'), checkpoint=str(folder / 'wan')
  )
  mesh = sharding.single_device_mesh()
  before = parts.open_part(folder / 'wan', 'transformer').load(mesh)
  for name, old in before.items():
    pairs = zip(
      jax.tree.leaves(state.params['dit'][name]),
      jax.tree.leaves(old),
      strict=True,
    )
    moved = [np.abs(np.asarray(a) - np.asarray(b)).max() > 0 for a, b in pairs]
    assert any(moved) == name.startswith('control'), name


def test_refuses_a_cache_of_another_model(folder, tmp_path):
  settings = finetuned.config(folder)
  with pytest.raises(ValueError, match='22 channels of control latents: expec'):
    setup.check(parse.experiment(settings), str(tmp_path / 'run'))


def test_known_pixels_of_training_clips():
  """Every kind occurs, and never all pixels are known."""
  size = (5, 6, 7)
  masks = [
    conditioning.draw_known(np.random.default_rng((0, i)), size)
    for i in range(200)
  ]
  assert not any(mask.all() for mask in masks)
  first, last, box = (
    sum(bool(test(mask)) for mask in masks)
    for test in (
      lambda m: m[0].all() and not m[-1].any(),
      lambda m: m[-1].all() and not m[0].any(),
      lambda m: m.any() and not m[0].all() and (m == m[:1]).all(),
    )
  )
  assert min(first, last, box) > 10
  assert any(m[0].all() and m[-1].all() and not m[2].any() for m in masks)
  one = [
    conditioning.draw_known(np.random.default_rng(i), (1, 4, 4))
    for i in range(50)
  ]
  assert not any(mask.all() for mask in one)
