"""Rotary positions."""

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.models import patches, rope

POSITION = patches.positions((3, 4, 5))


def test_split_of_the_head_is_wans():
  assert rope.axis_sizes(128) == (44, 42, 42)
  assert rope.axis_sizes(64) == (24, 20, 20)


def test_scores_depend_on_differences_of_positions_alone():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 60, 2, 24))
  scores = []
  for shift in ((0, 0, 0), (2, 5, 7)):
    tables = rope.tables(POSITION + np.array(shift), head_size=24, theta=100.0)
    turned = rope.rotate(q, *tables), rope.rotate(k, *tables)
    scores.append(jnp.einsum('BNAE,BSAE->BANS', *turned))
  np.testing.assert_allclose(*scores, atol=2e-5)


def test_each_axis_turns_its_own_channels():
  tables = rope.tables(POSITION, head_size=24, theta=100.0)
  x = jnp.ones((1, 60, 1, 24))
  turned = np.asarray(rope.rotate(x, *tables)).reshape(3, 4, 5, 24)
  t, h, _ = rope.axis_sizes(24)
  # Along time only the first channels change, and so on.
  assert np.allclose(turned[0, 0, 0, t:], turned[2, 0, 0, t:])
  assert not np.allclose(turned[0, 0, 0, :t], turned[2, 0, 0, :t])
  assert not np.allclose(turned[0, 0, 0, t : t + h], turned[0, 3, 0, t : t + h])
  assert np.allclose(turned[0, 0, 0, : t + h], turned[0, 0, 4, : t + h])


def test_lengths_are_kept_and_the_origin_does_not_turn():
  tables = rope.tables(POSITION, head_size=24, theta=100.0)
  x = jax.random.normal(jax.random.key(0), (1, 60, 2, 24))
  turned = rope.rotate(x, *tables)
  np.testing.assert_allclose(
    jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
  )
  np.testing.assert_array_equal(turned[:, 0], x[:, 0])
