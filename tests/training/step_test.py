"""One training step: gradients, average, skipped steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spacetime.training import state as state_lib
from spacetime.training import step as step_lib


def quadratic(params, frozen, batch, key):
  """A loss whose gradient is known."""
  error = params['w'] - batch['x'].mean(0)
  loss = 0.5 * jnp.sum(jnp.square(error)) + 0 * jax.random.normal(key)
  return loss, {'loss': loss}


def one_step(accumulate=1, ema=0.5):
  params = {'w': jnp.zeros(3)}
  move = optax.sgd(1.0)
  step = step_lib.make_step(quadratic, move, ema=ema, accumulate=accumulate)
  batch = {'x': jnp.arange(24.0).reshape(8, 3)}
  before = state_lib.new_state(params, move)
  return jax.jit(step)(before, {}, batch, jax.random.key(0)), batch


def test_step_moves_counts_and_averages():
  (state, metrics), batch = one_step()
  mean = np.asarray(batch['x'].mean(0))
  assert int(state.step) == 1
  np.testing.assert_allclose(state.params['w'], mean, rtol=1e-6)
  # At the first step the average forgets: its decay is (1 + 0) / (10 + 0).
  np.testing.assert_allclose(state.ema['w'], 0.9 * mean, rtol=1e-6)
  np.testing.assert_allclose(
    metrics['gradient_norm'], np.linalg.norm(mean), rtol=1e-6
  )


def test_accumulated_gradients_are_the_mean():
  full, parts = one_step()[0][0], one_step(accumulate=4)[0][0]
  np.testing.assert_allclose(full.params['w'], parts.params['w'], rtol=1e-6)


@pytest.mark.parametrize(
  ('fill', 'limit', 'skipped'),
  [
    (np.nan, np.inf, True),
    (np.inf, np.inf, True),
    (1e30, np.inf, True),  # the loss itself overflows
    (5.0, np.inf, False),
    (5.0, 37.6, False),  # the loss is 37.5
    (5.0, 37.4, True),
  ],
)
def test_a_step_that_would_harm_is_skipped(fill, limit, skipped):
  """Parameters, average and moments stay; the step counts all the same."""
  move = optax.adam(0.1)
  step = jax.jit(step_lib.make_step(quadratic, move, ema=0.5, limit=limit))
  before = state_lib.new_state({'w': jnp.zeros(3)}, move)
  batch = {'x': jnp.full((4, 3), fill)}
  after, metrics = step(before, {}, batch, jax.random.key(0))
  assert float(metrics['skipped']) == skipped
  assert int(after.step) == 1
  for old, new in zip(
    jax.tree.leaves((before.params, before.ema, before.opt_state)),
    jax.tree.leaves((after.params, after.ema, after.opt_state)),
    strict=True,
  ):
    assert skipped == np.array_equal(old, new)
    assert np.isfinite(new).all()


def test_ema_decay_grows_to_its_limit():
  assert float(step_lib.ema_decay(jnp.array(0), 0.99)) == pytest.approx(0.1)
  assert float(step_lib.ema_decay(jnp.array(10**6), 0.99)) == pytest.approx(
    0.99
  )
