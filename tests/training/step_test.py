"""One training step: gradients, average, skipped steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spacetime.config.sections import OptimizerConfig
from spacetime.diffusion import flow
from spacetime.training import means, optimizer
from spacetime.training import state as state_lib
from spacetime.training import step as step_lib


def quadratic(params, frozen, batch, key, draws=None):
  """A loss whose gradient is known."""
  del frozen, draws
  error = params['w'] - batch['x'].mean(0)
  loss = 0.5 * jnp.sum(jnp.square(error)) + 0 * jax.random.normal(key)
  return loss, {'loss': means.Mean(loss, len(batch['x']))}


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


@pytest.mark.parametrize('parts', [1, 2, 4])
def test_parts_weigh_as_much_as_they_count(parts):
  """Of two of four clips all frames but one are conditioning frames."""
  mask = jnp.array([[1, 1, 1, 1, 0], [0] * 5, [1, 1, 1, 1, 0], [0] * 5], bool)
  batch = {'x': jnp.arange(4.0)[:, None] * jnp.ones((4, 5)), 'mask': mask}

  def loss(params, frozen, rows, key, draws):
    noise = (
      draws['noise'] if draws else draw(params, frozen, rows, key)['noise']
    )
    error_Bf = (params['w'] - rows['x']) ** 2 + 0.1 * noise
    value = flow.masked_mean(error_Bf, rows['mask'])
    count = jnp.sum(1.0 - rows['mask'])
    half = means.Mean(jnp.mean(rows['x']), rows['x'].size)
    return value, {'loss': means.Mean(value, count), 'x': half}

  def draw(params, frozen, rows, key):
    return {'noise': jax.random.normal(key, rows['x'].shape)}

  metrics, gradient = step_lib.gradients(
    loss,
    {'w': jnp.float32(0)},
    {},
    batch,
    jax.random.key(0),
    accumulate=parts,
    draw=draw,
  )
  np.testing.assert_allclose(gradient['w'], -11 / 3, rtol=1e-6)
  noise = np.asarray(draw({}, {}, batch, jax.random.key(0))['noise'])
  errors = (np.asarray(batch['x']) ** 2 + 0.1 * noise)[~np.asarray(mask)]
  np.testing.assert_allclose(metrics['loss'], errors.mean(), rtol=1e-6)
  assert float(metrics['x']) == 1.5


def test_parts_of_which_nothing_counts_have_no_weight():
  def loss(params, frozen, rows, key, draws):
    value = params['w'] * jnp.sum(rows['x'])
    return value, {'loss': means.Mean(value, jnp.sum(rows['x']))}

  for x in ([0.0, 0.0], [0.0, 3.0]):
    _, gradient = step_lib.gradients(
      loss,
      {'w': jnp.float32(1)},
      {},
      {'x': jnp.array(x)},
      jax.random.key(0),
      accumulate=2,
    )
    assert float(gradient['w']) == x[1]


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


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_skipped_steps_count_in_the_schedule(name):
  """After two of six steps were skipped, the rate is that of the step; the
  moments have seen four."""
  config = OptimizerConfig(name=name, learning_rate=1.0, warmup=0, decay=1.0)
  rates = optimizer.schedule(config, steps=6)
  move = optimizer.make_optimizer(config, steps=6)
  step = jax.jit(step_lib.make_step(quadratic, move, ema=0.5, limit=np.inf))
  state, moves = state_lib.new_state({'w': jnp.zeros(3)}, move), []
  for x in (1.0, np.nan, np.nan, 1.0, 1.0, 1.0):
    batch = {'x': jnp.full((4, 3), 1e3 * x)}  # far away: a constant gradient
    before = state.params['w'][0]
    state, _ = step(state, {}, batch, jax.random.key(0))
    moves.append(float(state.params['w'][0] - before))
  is_schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)  # noqa: E731
  nodes = jax.tree.leaves(state.opt_state, is_leaf=is_schedule)
  counts = [int(node.count) for node in nodes if is_schedule(node)]
  assert counts and set(counts) == {6}
  assert any(node.ndim == 0 and node == 4 for node in nodes if _is_array(node))
  if name == 'adamw':
    expected = [float(rates(i)) for i in range(6)]
    expected[1] = expected[2] = 0.0
    np.testing.assert_allclose(moves, expected, rtol=0.02, atol=1e-6)


def _is_array(node):
  return isinstance(node, jax.Array)


def test_ema_decay_grows_to_its_limit():
  assert float(step_lib.ema_decay(jnp.array(0), 0.99)) == pytest.approx(0.1)
  assert float(step_lib.ema_decay(jnp.array(10**6), 0.99)) == pytest.approx(
    0.99
  )
