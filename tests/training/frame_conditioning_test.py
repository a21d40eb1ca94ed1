"""Conditioning frames of training clips and their timesteps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.config.sections import (
  FrameConditioningConfig,
)
from spacetime.training import frame_conditioning

ONLY = {f.name: 0.0 for f in dataclasses.fields(FrameConditioningConfig)}


@pytest.mark.slow
@pytest.mark.parametrize(
  'kind, rows',
  [
    ('none', {'.....'}),
    ('first', {'#....'}),
    ('first_k', {'#....', '##...', '###..', '####.'}),
    ('last_k', {'....#', '...##', '..###', '.####'}),
    (
      'ends',
      {'#...#', '##..#', '#..##', '###.#', '##.##', '#.###'},
    ),
  ],
)
def test_kinds_of_conditioning_frames(kind, rows):
  config = FrameConditioningConfig(**(ONLY | {kind: 1.0}))
  drawn = frame_conditioning.sample_cond_mask(jax.random.key(0), 512, 5, config)
  seen = {''.join('.#'[int(x)] for x in row) for row in np.asarray(drawn)}
  assert seen == rows


def test_random_conditioning_leaves_frames_to_learn():
  config = FrameConditioningConfig(**(ONLY | {'random': 1.0}))
  drawn = np.asarray(
    frame_conditioning.sample_cond_mask(jax.random.key(0), 512, 3, config)
  )
  assert not drawn.all(axis=1).any()
  assert len({tuple(row) for row in drawn}) == 7


@pytest.mark.slow
def test_kinds_are_drawn_by_weight_and_images_have_none():
  config = FrameConditioningConfig(**(ONLY | {'none': 3.0, 'first': 1.0}))
  drawn = frame_conditioning.sample_cond_mask(
    jax.random.key(0), 4000, 4, config
  )
  assert abs(float(drawn[:, 0].mean()) - 0.25) < 0.03
  assert not frame_conditioning.sample_cond_mask(
    jax.random.key(0), 8, 1, config
  ).any()
  both = FrameConditioningConfig(**(ONLY | {'ends': 1.0}))
  assert not frame_conditioning.sample_cond_mask(jax.random.key(0), 8, 2, both)[
    :, 1
  ].any()


def timesteps(**shares):
  """Of 2,000 clips of four frames, the first two of them conditioning."""
  cond_mask_Bf = jnp.tile(jnp.array([True, True, False, False]), (2000, 1))
  t_B1 = jnp.linspace(0.1, 1.0, 2000)[:, None]
  independent_Bf = jnp.full((2000, 4), 2.0)
  config = FrameConditioningConfig(**shares)
  t_Bf = frame_conditioning.frame_timesteps(
    jax.random.key(0), t_B1, independent_Bf, cond_mask_Bf, config
  )
  return np.asarray(t_Bf), np.asarray(t_B1)


def test_conditioning_frames_are_clean_by_default():
  t_Bf, t_B1 = timesteps()
  assert not t_Bf[:, :2].any()
  assert (t_Bf[:, 2:] == t_B1).all()


def test_context_noise_is_at_most_the_clip_timestep():
  t_Bf, t_B1 = timesteps(context_noise_prob=0.4, context_noise=0.5)
  assert (t_Bf[:, 0] == t_Bf[:, 1]).all() and (t_Bf[:, 2:] == t_B1).all()
  assert abs((t_Bf[:, 0] > 0).mean() - 0.4) < 0.06
  assert (t_Bf[:, :1] <= t_B1).all() and 0.45 < t_Bf[:, 0].max() <= 0.5


def test_a_share_of_clips_has_independent_timesteps():
  t_Bf, _ = timesteps(independent_noise_prob=0.3)
  independent_B = (t_Bf[:, 2:] == 2).all(1)
  assert abs(independent_B.mean() - 0.3) < 0.06
  assert not t_Bf[:, :2].any() and (t_Bf[~independent_B, 2:] < 2).all()


@pytest.mark.slow
def test_conditioning_frames_of_clips_of_other_durations():
  count_B = jnp.repeat(jnp.array([1, 2, 4]), 64)
  for kind, masks in (
    ('first', {'......', '#.....'}),
    ('last_k', {'......', '.#....', '...#..', '..##..', '.###..'}),
    ('ends', {'......', '#.....', '#..#..', '##.#..', '#.##..'}),
  ):
    config = FrameConditioningConfig(**(ONLY | {kind: 1.0}))
    drawn = frame_conditioning.sample_cond_mask(
      jax.random.key(0), 192, 6, config, count_B=count_B
    )
    seen = {''.join('.#'[int(x)] for x in row) for row in np.asarray(drawn)}
    assert seen == masks, kind
  coins = FrameConditioningConfig(**(ONLY | {'random': 1.0}))
  drawn = frame_conditioning.sample_cond_mask(
    jax.random.key(0), 192, 6, coins, count_B=count_B
  )
  assert not (drawn & (jnp.arange(6) >= count_B[:, None])).any()
  assert (drawn.sum(1) < count_B).all() and drawn[64:].any()
