"""The laws of rectified flow with a noise level for each frame."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.diffusion import flow

SHAPE = (2, 3, 4, 5, 6)  # B f h w c


def draw(seed, shape=SHAPE):
  return jax.random.normal(jax.random.key(seed), shape)


def test_path_from_data_to_noise():
  z, noise = draw(0), draw(1)
  np.testing.assert_array_equal(flow.add_noise(z, noise, jnp.zeros((2, 3))), z)
  np.testing.assert_allclose(flow.add_noise(z, noise, jnp.ones((2, 3))), noise)


def test_each_frame_has_its_own_noise_level():
  z, noise = draw(0), draw(1)
  t = jnp.array([[0.0, 0.5, 1.0], [1.0, 0.0, 0.25]])
  z_t = flow.add_noise(z, noise, t)
  np.testing.assert_array_equal(z_t[0, 0], z[0, 0])
  np.testing.assert_array_equal(z_t[1, 1], z[1, 1])
  np.testing.assert_allclose(z_t[0, 1], (z[0, 1] + noise[0, 1]) / 2, atol=1e-6)


def test_velocity_is_the_derivative_of_the_path():
  z, noise, t = draw(0), draw(1), jnp.full((2, 3), 0.3)
  _, slope = jax.jvp(
    lambda t: flow.add_noise(z, noise, t), (t,), (jnp.ones_like(t),)
  )
  np.testing.assert_allclose(slope, flow.velocity(z, noise), atol=1e-5)


def test_the_velocity_of_the_clean_latents_is_that_of_the_path():
  z, noise, t = draw(0), draw(1), jnp.full((2, 3), 0.3)
  z_t = flow.add_noise(z, noise, t)
  v = flow.to_velocity(z_t, z, t, floor=0.05)
  np.testing.assert_allclose(v, flow.velocity(z, noise), atol=1e-5)


def test_cells_take_their_noise_level_from_a_table():
  t_BT = jnp.array([[0.1, 0.2, 0.3, 0.9]] * 2)
  index = np.broadcast_to(np.arange(3)[:, None, None], (3, 4, 5)).copy()
  index[1, :2] = 3
  t = np.asarray(flow.per_cell(t_BT, index))
  assert t.shape == (2, 3, 4, 5, 1)
  np.testing.assert_allclose(t[1, 1, :, 0, 0], [0.9, 0.9, 0.2, 0.2])
  assert flow.per_cell(t_BT[:, :3], None).shape == (2, 3, 1, 1, 1)


def test_velocity_is_finite_at_data():
  v = flow.to_velocity(draw(0), draw(1), jnp.zeros((2, 3)), floor=0.05)
  np.testing.assert_allclose(v, (draw(0) - draw(1)) / 0.05, rtol=1e-5)


def test_timesteps_are_logit_normal_and_shift_towards_noise():
  key, shape = jax.random.key(0), (20000,)
  plain = flow.sample_timesteps(key, shape, flow.FlowConfig(mean=-0.5, std=0.7))
  logit = jnp.log(plain) - jnp.log1p(-plain)
  assert abs(float(logit.mean()) + 0.5) < 0.02
  assert abs(float(logit.std()) - 0.7) < 0.02
  assert 0 < float(plain.min()) and float(plain.max()) < 1
  moved = flow.sample_timesteps(
    key, shape, flow.FlowConfig(mean=-0.5, std=0.7, shift=3.0)
  )
  np.testing.assert_allclose(moved, 3 * plain / (1 + 2 * plain), atol=1e-6)
  assert bool(jnp.all(moved > plain))


def test_masked_mean_excludes_the_mask():
  loss = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
  cond_mask = jnp.array([[True, False, False], [True, True, False]])
  assert float(flow.masked_mean(loss, cond_mask)) == pytest.approx(11 / 3)


def test_frame_loss_is_a_mean_over_each_frame():
  loss = flow.frame_loss(draw(0), draw(1))
  assert loss.shape == (2, 3)
  expected = np.mean((np.asarray(draw(0)) - draw(1)) ** 2, axis=(2, 3, 4))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_refuses():
  with pytest.raises(ValueError, match="flow.prediction='noise': expected"):
    flow.FlowConfig(prediction='noise')
  with pytest.raises(ValueError, match='flow.shift=1e.300: expected at most'):
    flow.FlowConfig(shift=1e300)
  with pytest.raises(ValueError, match='flow.shift=0: expected more than 0'):
    flow.FlowConfig(shift=0)


def test_the_shift_grows_with_the_root_of_the_tokens():
  config = flow.FlowConfig(shift=3.0, reference=80)
  np.testing.assert_allclose(flow.size_shift(config, 80), 3)
  np.testing.assert_allclose(flow.size_shift(config, 320), 6, rtol=1e-6)
  np.testing.assert_allclose(flow.size_shift(config, 1), 1)
  assert flow.size_shift(flow.FlowConfig(shift=3.0), 320) == 3
  key = jax.random.key(0)
  alike = flow.FlowConfig(shift=6.0)
  levels = flow.sample_timesteps(
    key, (5, 1), config, tokens=jnp.array([[320]] * 5)
  )
  np.testing.assert_allclose(
    levels, flow.sample_timesteps(key, (5, 1), alike), rtol=1e-6
  )
  with pytest.raises(ValueError, match='flow.reference=0: expected a number'):
    flow.FlowConfig(reference=0)


@pytest.mark.parametrize(
  'low, high, shift',
  [(0.875, None, 3.0), (None, 0.875, 3.0), (0.875, 1.0, 5.0), (0.2, 0.4, 1.0)],
)
def test_bounded_noise_levels_keep_their_density(low, high, shift):
  """The distribution is that of levels drawn without bounds, of which those
  outside are thrown away."""
  config = flow.FlowConfig(shift=shift, low=low, high=high)
  shape = (20_000,)
  t = flow.sample_timesteps(jax.random.key(0), shape, config)
  least, most = config.bounds
  assert least <= t.min() and t.max() <= most
  free = flow.FlowConfig(shift=shift)
  drawn = flow.sample_timesteps(jax.random.key(1), (200_000,), free)
  kept = drawn[(drawn >= least) & (drawn <= most)]
  np.testing.assert_allclose(
    config.share_within(), len(kept) / len(drawn), atol=0.005
  )
  quantiles = np.linspace(0.05, 0.95, 19)
  np.testing.assert_allclose(
    np.quantile(t, quantiles), np.quantile(kept, quantiles), atol=0.02
  )


def test_bounds_hold_for_every_clip_of_a_shift_of_its_own():
  config = flow.FlowConfig(low=0.875, high=0.95, shift=3.0, reference=64)
  tokens = jnp.array([16, 64, 4096])[:, None]
  factor = jnp.array([0.5, 1.0, 4.0])[:, None]
  t = flow.sample_timesteps(
    jax.random.key(0), (3, 500), config, tokens=tokens, factor=factor
  )
  assert np.isfinite(t).all() and t.min() >= 0.875 and t.max() <= 0.95
  assert (np.ptp(t, axis=1) > 0.05).all()


def test_bounds_of_all_levels_change_no_bit():
  key = jax.random.key(0)
  bounded = flow.FlowConfig(shift=3.0, low=0.0, high=1.0)
  np.testing.assert_array_equal(
    flow.sample_timesteps(key, (9,), bounded),
    flow.sample_timesteps(key, (9,), flow.FlowConfig(shift=3.0)),
  )


@pytest.mark.parametrize(
  'values, message',
  [
    ({'low': 0.5, 'high': 0.5}, 'flow.low=0.5: expected below `flow.high`=0.5'),
    ({'low': -0.1}, 'flow.low=-0.1: expected 0 or more'),
    ({'low': 1.0}, 'flow.low=1.0: expected 0 or more, below 1'),
    ({'high': 0.0}, 'flow.high=0.0: expected above 0'),
    ({'high': 1.5}, 'flow.high=1.5: expected above 0, at most 1'),
    ({'low': 0.9999}, 'flow.low=0.9999: expected noise levels .* not 0'),
    ({'high': 1e-4}, 'flow.high=0.0001: expected noise levels'),
  ],
)
def test_bounds_that_leave_nothing_are_refused(values, message):
  with pytest.raises(ValueError, match=message):
    flow.FlowConfig(**values)
