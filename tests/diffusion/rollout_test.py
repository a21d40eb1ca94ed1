"""Division of long videos into chunks, and the conditioning of each."""

import numpy as np
import pytest

from spacetime import SettingError
from spacetime.diffusion import rollout
from spacetime.diffusion.conditioning import Conditioning


def test_chunks_cover_the_video_and_end_where_a_prompt_does():
  division = rollout.Rollout(13, 5, 3, (0, 6))
  spans = [(c.start, c.stop, c.prompt) for c in division.chunks]
  assert spans == [
    (0, 5, 0),
    (5, 6, 0),
    (6, 8, 1),
    (8, 10, 1),
    (10, 12, 1),
    (12, 13, 1),
  ]
  slices = [division.output_slice(chunk) for chunk in division.chunks]
  assert slices[:3] == [slice(0, 5), slice(3, 4), slice(3, 5)]


def test_a_first_prompt_shorter_than_the_context_is_all_the_context():
  division = rollout.Rollout(6, 5, 3, (0, 2))
  assert division.output_slice(division.chunks[1]) == slice(2, 4)


def test_refuses():
  for starts in ((0, 13), (1, 4), (0, 4, 4)):
    with pytest.raises(SettingError, match='^prompt_schedule=.*rise from 0'):
      rollout.Rollout(13, 5, 3, starts)
  with pytest.raises(SettingError, match='^cond_frames=5: expected 1 to 4 lat'):
    rollout.Rollout(13, 5, 5)
  z = np.zeros((2, 3, 4, 5, 6), np.float32)
  for parts in ({'t_index_fhw': z[0, ..., 0]}, {'cond_mask_Bfhwc': z > 0}):
    with pytest.raises(SettingError, match='^cond_frames=None: expected whole'):
      rollout.first_conditioning(
        Conditioning(z, np.ones((2, 1), np.float32), **parts), frames=3
      )


def test_the_first_chunk_has_a_noise_level_for_each_latent_frame():
  z = np.ones((2, 3, 4, 5, 6), np.float32)
  cond = rollout.first_conditioning(
    Conditioning(z, np.ones((2, 1), np.float32)), frames=3
  )
  np.testing.assert_array_equal(cond.t_BT, np.ones((2, 3)))
  np.testing.assert_array_equal(cond.z_Bfhwc, z)
  assert cond.context_BT is None
  noisy = rollout.first_conditioning(
    Conditioning(z, np.ones((2, 1), np.float32)), frames=3, context_noise=0.1
  )
  assert noisy.context_BT.shape == (2, 3) and not noisy.context_BT.any()


def test_a_later_chunk_is_conditioned_on_the_tail():
  rng = np.random.default_rng(0)
  tail = rollout.Tail(rng.normal(size=(2, 3, 4, 5, 6)), None, {})
  first = rng.normal(size=(2, 1, 4, 5, 6)).astype(np.float32)
  cond = rollout.next_conditioning(tail, first, frames=7, context_noise=0.25)
  np.testing.assert_array_equal(cond.t_BT, [[0.25] * 3 + [1.0] * 4] * 2)
  np.testing.assert_array_equal(cond.z_Bfhwc[:, :1], first)
  np.testing.assert_allclose(cond.z_Bfhwc[:, 1:3], tail.z_Bfhwc[:, 1:], 1e-6)
  assert not cond.z_Bfhwc[:, 3:].any()
  np.testing.assert_array_equal(cond.context_BT, [[True] * 3 + [False] * 4] * 2)
  clean = rollout.next_conditioning(tail, first, frames=7)
  assert clean.context_BT is None and not clean.t_BT[:, :3].any()
