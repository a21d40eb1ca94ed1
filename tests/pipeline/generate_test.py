"""Conditioning of a batch: encoded frames and initial noise levels."""

import dataclasses

import numpy as np
import pytest

from experiments import digits_pixels
from spacetime.checkpoint import load
from spacetime.config import networks, parse
from spacetime.diffusion import conditioning_video
from spacetime.media.pixels import to_video
from tests.helpers import sampling

RNG = np.random.default_rng(0)
VIDEO = RNG.integers(0, 256, (12, 32, 48, 3)).astype(np.uint8)


@pytest.fixture(scope='module')
def model():
  """Of pixels, in patches of 8 x 8."""
  config = digits_pixels.get_config('tiny')
  config.model.patch = (1, 8, 8)
  experiment = parse.experiment(config)
  nets = networks.networks(experiment)
  return load.Model(experiment, nets, None, '', '', {'autoencoder': dict})


def condition(model, video, strength=1.0):
  return sampling.conditioning(model, video, batch=2, strength=strength)


def encoded(model, frames_FHWC):
  codec = model.networks.autoencoder
  return np.asarray(codec.encode({}, to_video(frames_FHWC)[None]))


def test_an_edit_noises_all_frames_to_its_strength(model):
  window = conditioning_video.edit(VIDEO, frames=9)
  cond = condition(model, window, strength=0.5)
  np.testing.assert_array_equal(cond.t_BT, [[0.5], [0.5]])
  z = encoded(model, VIDEO[:9])
  np.testing.assert_allclose(cond.z_Bfhwc, np.concatenate([z, z]), atol=1e-6)
  window = conditioning_video.edit(VIDEO, frames=9, cond_frames=4)
  cond = condition(model, window, strength=0.5)
  np.testing.assert_array_equal(cond.t_BT, [[0.5, 0.5, 0]] * 2)


def test_an_edit_of_full_strength_is_of_noise_alone(model):
  cond = condition(model, conditioning_video.edit(VIDEO, frames=9))
  np.testing.assert_array_equal(cond.t_BT, [[1.0], [1.0]])
  assert cond.cond_mask_Bfhwc is None and cond.t_index_fhw is None


def test_no_more_is_encoded_than_is_known(model):
  codec = model.networks.autoencoder
  seen = []

  class Watched(type(codec)):
    def encode_step(self, params, cache, video_BFHWC):
      seen.append(video_BFHWC.shape)
      return super().encode_step(params, cache, video_BFHWC)

  networks = dataclasses.replace(model.networks, autoencoder=Watched())
  watched = dataclasses.replace(model, networks=networks)
  window = conditioning_video.forward(VIDEO, frames=17, cond_frames=5)
  cond = condition(watched, window)
  assert seen == [(1, 4, 32, 48, 3)]  # traced once
  np.testing.assert_array_equal(cond.t_BT, [[0, 0, 1, 1, 1]] * 2)
  z = encoded(model, VIDEO[-5:])
  np.testing.assert_allclose(cond.z_Bfhwc[1, :2], z[0], atol=1e-6)
  assert not cond.z_Bfhwc[:, 2:].any()


def test_a_mask_gives_tokens_and_parts_of_them(model):
  new_HW = np.zeros((32, 48), bool)
  new_HW[:, :20] = True  # two tokens and half of the next
  cond = condition(model, conditioning_video.inpaint(VIDEO[:9], new_HW))
  np.testing.assert_array_equal(cond.t_BT, [[1, 1, 1, 0]] * 2)
  assert (cond.t_index_fhw[:, :, 24:] == 3).all()
  assert (cond.t_index_fhw[2, :, :24] == 2).all()
  known_W = np.asarray(cond.cond_mask_Bfhwc).all((0, 1, 2, 4))
  np.testing.assert_array_equal(
    known_W, (np.arange(48) >= 20) & (np.arange(48) < 24)
  )
