"""Conditioning of latents: noise levels, indices and masks."""

import numpy as np
import pytest

from spacetime.diffusion import conditioning, conditioning_video
from spacetime.models.autoencoder import identity, wan

PIXELS = identity.IdentityAutoencoder(time=4)
CELLS = wan.WanAutoencoder(
  wan.WanAutoencoderConfig(
    base_dim=4,
    z_dim=3,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
  )
)


def test_the_identity_autoencoder_masks_every_value_by_itself():
  rng = np.random.default_rng(0)
  cond_mask_FHW = rng.random((9, 2, 3)) < 0.5
  mask = PIXELS.latent_cond_mask(cond_mask_FHW)
  video = np.where(cond_mask_FHW[..., None], 1.0, -1.0)
  video = np.broadcast_to(video, (9, 2, 3, 3)).astype(np.float32)
  expected = np.asarray(PIXELS.encode({}, video[None]))[0] > 0
  np.testing.assert_array_equal(mask, expected)


def test_a_latent_cell_is_known_if_all_its_pixels_are():
  _, height, width = CELLS.stride
  cond_mask_FHW = np.ones((9, 2 * height, 3 * width), bool)
  cond_mask_FHW[0, 0, 0] = False
  cond_mask_FHW[4, height, width] = False
  mask = CELLS.latent_cond_mask(cond_mask_FHW)
  assert mask.shape == (3, 2, 3, 3)
  expected = np.ones((3, 2, 3), bool)
  expected[0, 0, 0] = expected[1, 1, 1] = False
  np.testing.assert_array_equal(mask, np.stack([expected] * 3, axis=-1))


def test_known_frames_and_tokens_have_level_zero_and_the_rest_a_mask():
  rng = np.random.default_rng(0)
  z = rng.normal(size=(2, 3, 2, 6, 4)).astype(np.float32)
  cond_mask_fhwc = np.zeros((3, 2, 6, 4), bool)
  patch = (1, 2, 3)
  plain = conditioning.from_mask(z, cond_mask_fhwc, patch=patch, strength=0.5)
  np.testing.assert_array_equal(plain.t_BT, [[0.5], [0.5]])
  assert plain.cond_mask_Bfhwc is None and plain.t_index_fhw is None
  cond_mask_fhwc[2] = True
  frame = conditioning.from_mask(z, cond_mask_fhwc, patch=patch)
  np.testing.assert_array_equal(frame.t_BT, [[1, 1, 0]] * 2)
  assert frame.cond_mask_Bfhwc is None and frame.t_index_fhw is None
  # All of a token of frame 1, and a part of the other one.
  cond_mask_fhwc[1, :, :4] = True
  tokens = conditioning.from_mask(z, cond_mask_fhwc, patch=patch, strength=0.5)
  np.testing.assert_array_equal(tokens.t_BT, [[0.5, 0.5, 0, 0]] * 2)
  np.testing.assert_array_equal(tokens.t_index_fhw[1, 1], [3, 3, 3, 1, 1, 1])
  assert (tokens.t_index_fhw[0] == 0).all() and (
    tokens.t_index_fhw[2] == 3
  ).all()
  np.testing.assert_array_equal(
    tokens.per_cell(tokens.t_BT)[1, 1, 0, :, 0], [0, 0, 0, 0.5, 0.5, 0.5]
  )
  expected = np.zeros((2, 3, 2, 6, 4), bool)
  expected[:, 1, :, 3] = True
  np.testing.assert_array_equal(tokens.cond_mask_Bfhwc, expected)
  np.testing.assert_array_equal(tokens.z_Bfhwc, z)


@pytest.mark.parametrize(
  'autoencoder', [PIXELS, CELLS], ids=['pixels', 'cells']
)
@pytest.mark.parametrize(
  'make, cond_frames, expected',
  [
    # The first latent frame has one frame, every later one four.
    (conditioning_video.forward, 5, [True, True, False]),
    (conditioning_video.forward, 4, [True, False, False]),
    (conditioning_video.backward, 4, [False, False, True]),
  ],
)
def test_latent_frames_are_those_of_a_clip_of_its_own(
  autoencoder, make, cond_frames, expected
):
  height, width = (2 * n for n in autoencoder.stride[1:])
  frames_FHWC = np.zeros((20, height, width, 3), np.uint8)
  video = make(frames_FHWC, frames=9, cond_frames=cond_frames)
  mask_f = autoencoder.latent_cond_mask(video.cond_mask_FHW).all((1, 2, 3))
  assert mask_f.tolist() == expected


def test_repeat_has_all_clips_once_for_each_branch():
  z = np.arange(2 * 3 * 2 * 6 * 4, dtype=np.float32).reshape(2, 3, 2, 6, 4)
  mask = np.zeros(z.shape[1:], bool)
  mask[1, :, 0] = True
  twice = conditioning.from_mask(z, mask, patch=(1, 2, 3)).repeat(2)
  np.testing.assert_array_equal(twice.z_Bfhwc, np.concatenate([z, z]))
  assert twice.t_BT.shape == (4, 1)
  np.testing.assert_array_equal(twice.cond_mask_Bfhwc, np.stack([mask] * 4))
