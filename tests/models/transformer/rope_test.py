"""Rotary position embedding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.models.transformer import patchify, rope

POSITION = patchify.positions((3, 4, 5))


def test_axis_sizes_are_those_of_wan():
  assert rope.axis_sizes(128) == (44, 42, 42)
  assert rope.axis_sizes(64) == (24, 20, 20)


def test_scores_depend_on_position_differences_alone():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 60, 2, 24))
  scores = []
  for shift in ((0, 0, 0), (2, 5, 7)):
    tables = rope.tables(POSITION + np.array(shift), head_size=24, theta=100.0)
    rotated = rope.rotate(q, *tables), rope.rotate(k, *tables)
    scores.append(jnp.einsum('BNAE,BSAE->BANS', *rotated))
  np.testing.assert_allclose(*scores, atol=2e-5)


def test_each_axis_rotates_its_own_channels():
  tables = rope.tables(POSITION, head_size=24, theta=100.0)
  x = jnp.ones((1, 60, 1, 24))
  rotated = np.asarray(rope.rotate(x, *tables)).reshape(3, 4, 5, 24)
  t, h, _ = rope.axis_sizes(24)
  # Along time only the first channels change, and so on.
  assert np.allclose(rotated[0, 0, 0, t:], rotated[2, 0, 0, t:])
  assert not np.allclose(rotated[0, 0, 0, :t], rotated[2, 0, 0, :t])
  assert not np.allclose(
    rotated[0, 0, 0, t : t + h], rotated[0, 3, 0, t : t + h]
  )
  assert np.allclose(rotated[0, 0, 0, : t + h], rotated[0, 0, 4, : t + h])


def test_rotate_keeps_norms_and_the_origin():
  tables = rope.tables(POSITION, head_size=24, theta=100.0)
  x = jax.random.normal(jax.random.key(0), (1, 60, 2, 24))
  rotated = rope.rotate(x, *tables)
  np.testing.assert_allclose(
    jnp.linalg.norm(rotated, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
  )
  np.testing.assert_array_equal(rotated[:, 0], x[:, 0])


def frequencies(size, length, *, theta=100.0, scaling=None):
  """Frequencies of an axis: the angles at position 1."""
  return rope.axis_table(size, length, theta=theta, scaling=scaling)[1]


@pytest.mark.parametrize('kind', rope.SCALING_RULES)
def test_scaling_changes_nothing_within_trained_length(kind):
  # Of 11 frames riflex would lower the frequency whose period is 11.2.
  scaling = rope.Scaling(kind, trained=11)
  for frames in (1, 2, 11, 14):
    position_N3 = patchify.positions((frames, 3, 4))
    sizes = dict(head_size=40, theta=100.0)
    plain = rope.tables(position_N3, **sizes)
    scaled = rope.tables(position_N3, **sizes, scaling=scaling)
    same = [np.array_equal(*pair) for pair in zip(plain, scaled, strict=True)]
    assert same == [frames <= 11] * 2


@pytest.mark.parametrize('kind', rope.SCALING_RULES)
def test_scaling_acts_on_time_alone(kind):
  scaling = rope.Scaling(kind, trained=2)
  position_N3 = patchify.positions((7, 6, 5))
  sizes = dict(head_size=40, theta=100.0)
  time = rope.axis_sizes(40)[0] // 2
  plain = rope.tables(position_N3, **sizes)
  scaled = rope.tables(position_N3, **sizes, scaling=scaling)
  for before, after in zip(plain, scaled, strict=True):
    np.testing.assert_array_equal(before[:, time:], after[:, time:])
    changed = (before != after).any(0)[:time]
    # ntk keeps the fastest one.
    assert changed.sum() == (1 if kind == 'riflex' else time - 1)


# The frequency and period that the authors chose by eye for CogVideoX-5B (13
# latent frames) and HunyuanVideo (33); for Wan they follow from 21 frames.
@pytest.mark.parametrize(
  'size, theta, trained, k, period',
  [(16, 1e4, 13, 2, 20), (16, 256.0, 33, 4, 50), (44, 1e4, 21, 4, 22)],
)
def test_riflex_lowers_intrinsic_frequency_alone(
  size, theta, trained, k, period
):
  length = 3 * trained
  plain = frequencies(size, length, theta=theta)
  assert round(2 * np.pi / plain[k - 1]) == period
  scaling = rope.Scaling('riflex', trained)
  angles = rope.axis_table(size, length, theta=theta, scaling=scaling)
  assert np.flatnonzero(angles[1] != plain).tolist() == [k - 1]
  np.testing.assert_allclose(angles[1, k - 1], 0.9 * 2 * np.pi / length)
  # It makes no full turn any more.
  assert angles[-1, k - 1] < 2 * np.pi < plain[k - 1] * (length - 1)


def test_riflex_raises_no_frequency():
  # The period, 9.2 positions, is longer than the 8 of them already.
  scaling = rope.Scaling('riflex', trained=7)
  np.testing.assert_array_equal(
    frequencies(24, 8, scaling=scaling), frequencies(24, 8)
  )
  assert (frequencies(24, 9, scaling=scaling) <= frequencies(24, 9)).all()
  # All made a full turn in training: the slowest is lowered.
  scaled = frequencies(4, 90, scaling=rope.Scaling('riflex', trained=80))
  np.testing.assert_allclose(scaled, [1, 0.9 * 2 * np.pi / 90])


def test_ntk_equals_a_larger_base():
  size, theta, trained, length = 24, 100.0, 5, 13
  scaled = frequencies(size, length, scaling=rope.Scaling('ntk', trained))
  base = theta * (length / trained) ** (size / (size - 2))
  np.testing.assert_allclose(
    scaled, frequencies(size, length, theta=base), rtol=1e-12
  )
  plain = frequencies(size, length)
  assert scaled[0] == plain[0] == 1
  assert scaled[-1] == plain[-1] / (length / trained)
  # A lone frequency is the fastest one.
  assert frequencies(2, 9, scaling=rope.Scaling('ntk', 3)).tolist() == [1]


@pytest.mark.parametrize(
  'kind, trained', [('none', 3), ('yarn', 3), ('ntk', 0)]
)
def test_scaling_refuses(kind, trained):
  text = f"rope_scaling='{kind}'" if trained else 'trained=0: expected'
  with pytest.raises(ValueError, match=text):
    rope.Scaling(kind, trained)
