"""Optimizers and their schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spacetime.config.sections import (
  MOMENTS,
  OptimizerConfig,
)
from spacetime.training import optimizer

ADAM = OptimizerConfig(learning_rate=0.1, warmup=4, decay=0.5)


def test_schedule_warms_up_stays_and_falls_to_zero():
  rate = optimizer.schedule(ADAM, steps=20)
  values = [float(rate(i)) for i in range(21)]
  assert 0 < values[0] < values[1] < values[4] == 1.0
  assert values[4:11] == [1.0] * 7
  assert values[10] > values[12] > values[19] > values[20] == 0.0


def test_muon_takes_the_matrices_inside_blocks():
  params = {
    'dit': {
      'blocks': {'mlp_in': {'kernel': jnp.zeros((2, 3, 5))}},
      'patch_embed': {'kernel': jnp.zeros((3, 5))},
    }
  }
  axes = optimizer.matrix_axes(params)
  stacked = axes['dit']['blocks']['mlp_in']['kernel']
  assert (stacked.reduction_axis, stacked.output_axis) == (1, 2)
  assert axes['dit']['patch_embed']['kernel'] is None


def test_muon_moves_every_layer_of_a_stack_alike():
  config = dataclasses.replace(ADAM, name='muon', warmup=0)
  moved = optimizer.make_optimizer(config, steps=10)
  kernel = jnp.zeros((2, 6, 4))
  params = {'dit': {'blocks': {'mlp_in': {'kernel': kernel}}}}
  one = jax.random.normal(jax.random.key(0), (6, 4))
  # Orthogonalised layer by layer, the size of a layer's gradient is nothing.
  gradient = jax.tree.map(lambda _: jnp.stack([one, 0.01 * one]), params)
  updates, _ = moved.update(gradient, moved.init(params), params)
  update = updates['dit']['blocks']['mlp_in']['kernel']
  np.testing.assert_allclose(update[0], update[1], rtol=1e-3)
  singular = jnp.linalg.svd(update[0] / update[0].std(), compute_uv=False)
  assert float(singular.max() / singular.min()) < 2.5


def test_only_kernels_decay():
  config = dataclasses.replace(ADAM, weight_decay=0.5, warmup=0)
  move = optimizer.make_optimizer(config, steps=10)
  block = {'q': {'kernel': jnp.ones((2, 3, 3)), 'bias': jnp.ones((2, 3))}}
  block['modulation'] = jnp.ones((2, 6, 3))
  params = {'dit': {'blocks': block}}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = move.update(zeros, move.init(params), params)
  updates = updates['dit']['blocks']
  assert np.all(updates['q']['kernel'] < 0)
  assert not np.any(updates['q']['bias'])
  assert not np.any(updates['modulation'])


def test_frozen_parameters_stay_and_take_no_share_of_the_clipped_norm():
  params = {'a': {'kernel': jnp.ones(2)}, 'b': {'kernel': jnp.ones(2)}}
  gradient = {'a': {'kernel': 1e3 * jnp.ones(2)}, 'b': {'kernel': jnp.ones(2)}}
  config = dataclasses.replace(
    ADAM, weight_decay=0.5, clip=1.0, b1=0.0, freeze=('a/.*',)
  )

  def moved(config):
    move = optimizer.make_optimizer(config, steps=10)
    state = move.init(params)
    updates, _ = move.update(gradient, state, params)
    return updates

  still = moved(config)
  np.testing.assert_array_equal(still['a']['kernel'], 0)
  # Adam sees a gradient of 1/sqrt(2), not one of 1e-3 beside a's.
  alone = dict(gradient, a={'kernel': jnp.zeros(2)})
  np.testing.assert_array_less(still['b']['kernel'], 0)
  gradient = alone
  np.testing.assert_allclose(
    still['b']['kernel'],
    moved(dataclasses.replace(config, freeze=()))['b']['kernel'],
    rtol=1e-6,
  )


def test_moments_in_bfloat16_are_half_and_move_alike():
  params = {'w': {'kernel': jnp.ones((4, 3))}}
  moved = {}
  for moments in MOMENTS:
    config = dataclasses.replace(ADAM, moments=moments)
    made = optimizer.make_optimizer(config, steps=10)
    state, moved[moments] = made.init(params), params
    for i in range(5):
      gradient = jax.tree.map(
        lambda x, i=i: jax.random.normal(jax.random.key(i), x.shape), params
      )
      updates, state = made.update(gradient, state, moved[moments])
      moved[moments] = optax.apply_updates(moved[moments], updates)
    kept = {str(x.dtype) for x in jax.tree.leaves(state) if x.ndim}
    assert kept == {moments}
  half, whole = (moved[m]['w']['kernel'] for m in ('bfloat16', 'float32'))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, whole, atol=0.01)
  assert np.abs(whole - 1).max() > 0.1


def test_refuses_to_freeze_parameters_that_do_not_exist():
  move = optimizer.make_optimizer(OptimizerConfig(freeze=('b/.*',)), steps=10)
  with pytest.raises(ValueError, match=r"'b/\.\*' matches no .*'a/kernel'"):
    move.init({'a': {'kernel': jnp.ones(2)}})
