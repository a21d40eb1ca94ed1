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
from tests.helpers.seeded_weights import draw

ADAM = OptimizerConfig(learning_rate=0.1, warmup=4, decay=0.5)


def first_updates(config, params, gradient):
  """Updates of the first step, by one program."""
  move = optimizer.make_optimizer(config, steps=10)

  @jax.jit
  def update(params, gradient):
    return move.update(gradient, move.init(params), params)[0]

  return update(params, gradient)


def test_schedule_warms_up_stays_and_falls_to_zero():
  rate = optimizer.schedule(ADAM, steps=20)
  values = np.asarray(jax.jit(jax.vmap(rate))(np.arange(21))).tolist()
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
  kernel = np.zeros((2, 6, 4), np.float32)
  params = {'dit': {'blocks': {'mlp_in': {'kernel': kernel}}}}
  one = draw('gradient', (6, 4))
  # Orthogonalised layer by layer, the size of a layer's gradient is nothing.
  gradient = jax.tree.map(lambda _: np.stack([one, 0.01 * one]), params)
  updates = first_updates(config, params, gradient)
  update = np.asarray(updates['dit']['blocks']['mlp_in']['kernel'])
  np.testing.assert_allclose(update[0], update[1], rtol=1e-3)
  singular = np.linalg.svd(update[0] / update[0].std(), compute_uv=False)
  assert float(singular.max() / singular.min()) < 2.5


def test_only_kernels_decay():
  config = dataclasses.replace(ADAM, weight_decay=0.5, warmup=0)
  block = {'q': {'kernel': np.ones((2, 3, 3)), 'bias': np.ones((2, 3))}}
  block['modulation'] = np.ones((2, 6, 3))
  params = {'dit': {'blocks': block}}
  zeros = jax.tree.map(np.zeros_like, params)
  updates = first_updates(config, params, zeros)['dit']['blocks']
  assert np.all(updates['q']['kernel'] < 0)
  assert not np.any(updates['q']['bias'])
  assert not np.any(updates['modulation'])


def test_frozen_parameters_stay_and_take_no_share_of_the_clipped_norm():
  params = {'a': {'kernel': np.ones(2)}, 'b': {'kernel': np.ones(2)}}
  gradient = {'a': {'kernel': 1e3 * np.ones(2)}, 'b': {'kernel': np.ones(2)}}
  config = dataclasses.replace(
    ADAM, weight_decay=0.5, clip=1.0, b1=0.0, freeze=('a/.*',)
  )

  still = first_updates(config, params, gradient)
  np.testing.assert_array_equal(still['a']['kernel'], 0)
  # Adam sees a gradient of 1/sqrt(2), not one of 1e-3 beside a's.
  alone = dict(gradient, a={'kernel': np.zeros(2)})
  np.testing.assert_array_less(still['b']['kernel'], 0)
  free = dataclasses.replace(config, freeze=())
  np.testing.assert_allclose(
    still['b']['kernel'],
    first_updates(free, params, alone)['b']['kernel'],
    rtol=1e-6,
  )


def test_moments_in_bfloat16_are_half_and_move_alike():
  params = {'w': {'kernel': jnp.ones((4, 3))}}
  moved = {}
  for moments in MOMENTS:
    config = dataclasses.replace(ADAM, moments=moments)
    optimiser = optimizer.make_optimizer(config, steps=10)
    state, moved[moments] = optimiser.init(params), params
    update = jax.jit(optimiser.update)
    for i in range(5):
      gradient = {'w': {'kernel': draw(f'{i}', (4, 3))}}
      updates, state = update(gradient, state, moved[moments])
      moved[moments] = optax.apply_updates(moved[moments], updates)
    kept = {str(x.dtype) for x in jax.tree.leaves(state) if x.ndim}
    assert kept == {moments}
  half, full = (moved[m]['w']['kernel'] for m in ('bfloat16', 'float32'))
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, full, atol=0.01)
  assert np.abs(full - 1).max() > 0.1


def test_refuses_to_freeze_parameters_that_do_not_exist():
  move = optimizer.make_optimizer(OptimizerConfig(freeze=('b/.*',)), steps=10)
  with pytest.raises(ValueError, match=r"'b/\.\*' matches no .*'a/kernel'"):
    move.init({'a': {'kernel': jnp.ones(2)}})
