"""Solvers on problems whose solution is known; no network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.diffusion import schedules, solvers


def error(name, steps):
  """Error on dz/dt = -z cos(3 t), z(1) = 1, whose z(0) is exp(sin(3) / 3)."""
  predict = lambda z, t: -z * jnp.cos(3 * t)  # noqa: E731
  z = jnp.ones((1, 1, 1, 1, 1))
  with jax.enable_x64(False):
    z = solvers.get(name)(predict, z, schedules.even_sigmas(steps))
  return abs(float(z[0, 0, 0, 0, 0]) - np.exp(np.sin(3) / 3))


@pytest.mark.parametrize(
  'name, order, steps',
  [('euler', 1, 16), ('heun', 2, 16), ('dpm', 2, 64), ('unipc', 2, 64)],
)
def test_order_of_convergence(name, order, steps):
  ratio = error(name, steps) / error(name, 2 * steps)
  # Heun's last step is of first order, over one step: the order holds.
  assert 2**order * 0.8 < ratio < 2**order * 1.35


def gaussian(name, steps):
  """Error on data of mean 2 and deviation 0.5, from the noise 1: the flow
  carries it to 2 + 0.5 * 1."""

  def predict(z, t):
    deviation = jnp.sqrt(jnp.square(0.5 * (1 - t)) + jnp.square(t))
    slope = (t - 0.25 * (1 - t)) / jnp.square(deviation)
    return -2 + slope * (z - 2 * (1 - t))

  z = jnp.ones((1, 1, 1, 1, 1))
  z = solvers.get(name)(predict, z, schedules.even_sigmas(steps))
  return abs(float(z[0, 0, 0, 0, 0]) - 2.5)


@pytest.mark.parametrize(
  'name, order', [('euler', 1), ('heun', 2), ('dpm', 2), ('unipc', 2)]
)
def test_order_on_the_flow_of_a_gaussian(name, order):
  steps = np.array([96, 128, 192, 256])
  errors = [gaussian(name, int(k)) for k in steps]
  found = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
  # DPM++ comes to its order from below: 1.66 from 32 to 192 steps.
  assert abs(found - order) < 0.25, errors


@pytest.mark.parametrize('name', sorted(solvers.SOLVERS))
@pytest.mark.parametrize('cut', [0, 2])
def test_a_predict_that_remembers_is_asked_in_order(name, cut):
  """It counts its calls and keeps the last level; without a use of what it
  remembers, the result is that of one that forgets."""

  def predict(z, t):
    return jnp.sin(3 * z) * t - z

  def remembering(z, t, memory):
    count, last = memory
    right = (t <= last) & (t > 0)
    return jnp.where(right, predict(z, t), jnp.nan), (count + 1, t)

  z = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 6))
  method, levels = solvers.get(name), schedules.even_sigmas(4)
  carry, memory = method.begin(z), (jnp.int32(0), jnp.float32(1))
  for span in ((0, cut), (cut, None)):
    carry, memory = method.advance_with(
      remembering, carry, memory, levels, span=span
    )
  np.testing.assert_array_equal(method.end(carry), method(predict, z, levels))
  assert memory[0] == (7 if name == 'heun' else 4)
  assert memory[1] == levels[3]


@pytest.mark.parametrize('name', sorted(solvers.SOLVERS))
def test_exact_on_a_straight_path(name):
  noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 6))
  data = jax.random.normal(jax.random.key(1), (2, 3, 4, 5, 6))
  predict = lambda z, t: noise - data  # noqa: E731
  for shift in (1.0, 3.0):
    z = solvers.get(name)(predict, noise, schedules.even_sigmas(5, shift=shift))
    np.testing.assert_allclose(z, data, atol=2e-6)


@pytest.mark.parametrize('name', sorted(solvers.SOLVERS))
@pytest.mark.parametrize('steps', [1, 2, 3, 7])
def test_what_does_not_move_stays_to_the_last_bit(name, steps):
  z = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 6))
  still = jnp.arange(3)[None, :, None, None, None] == 1
  predict = lambda z, t: jnp.where(still, 0.0, z * t - 1)  # noqa: E731
  end = solvers.get(name)(predict, z, schedules.even_sigmas(steps))
  np.testing.assert_array_equal(end[:, 1], z[:, 1])
  assert np.all(np.isfinite(end)) and np.abs(end - z)[:, 0].max() > 0.1


@pytest.mark.parametrize('name', sorted(solvers.SOLVERS))
@pytest.mark.parametrize('steps', [2, 3, 8])
def test_predict_hears_what_it_is_told_once_a_step(name, steps):
  levels = schedules.even_sigmas(steps)
  heard = []

  def predict(z, t):
    heard.append(float(t))
    return z

  z = jnp.ones((1, 1, 1, 1, 1))
  solve = solvers.get(name)
  with jax.disable_jit():
    solve(predict, z, tuple(levels.tolist()))
    plain, heard = heard, []
    solve(predict, z, levels, timesteps=levels[:-1] / 2)
  # Heun asks at both ends of a step, but for the last.
  calls = 2 * steps - 1 if name == 'heun' else steps
  assert len(plain) == len(heard) == calls
  assert sorted(set(plain)) == sorted(levels[:-1].tolist())
  np.testing.assert_array_equal(np.array(plain) / 2, heard)


@pytest.mark.parametrize('name', sorted(solvers.SOLVERS))
@pytest.mark.parametrize('cut', [0, 1, 3, 5])
def test_a_run_that_is_left_and_taken_up_is_the_same_to_the_bit(name, cut):
  z = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 6))
  levels = schedules.even_sigmas(5, shift=3.0)
  told = np.round(levels[:-1], 2)
  predict = lambda z, t: jnp.sin(3 * z) * t - z  # noqa: E731
  method = solvers.get(name)
  whole = method(predict, z, levels, timesteps=told)
  carry = method.begin(z)
  for span in ((0, cut), (cut, None)):
    carry = method.advance(predict, carry, levels, timesteps=told, span=span)
  np.testing.assert_array_equal(method.end(carry), whole)


@pytest.mark.parametrize('name', ['dpm', 'unipc'])
def test_the_last_step_of_multistep_solvers_is_the_sample(name):
  sample = jnp.full((1, 1, 1, 1, 1), 0.25)
  # Only at the last of the levels does the sample come to sight.
  predict = lambda z, t: (z - jnp.where(t < 0.3, sample, t)) / t  # noqa: E731
  z = solvers.get(name)(predict, sample + 1, schedules.even_sigmas(4))
  np.testing.assert_allclose(z, sample, atol=1e-6)


@pytest.mark.parametrize('name', ['dpm', 'unipc'])
def test_a_start_at_one_is_as_good_as_just_below(name):
  predict = lambda z, t: -z * jnp.cos(3 * t)  # noqa: E731
  z = jnp.ones((1, 1, 1, 1, 1))
  levels = schedules.even_sigmas(4)
  below = np.append(np.float32(1 - 1e-6), levels[1:])
  with np.errstate(all='raise'):
    at_one, at_margin = (
      solvers.get(name)(predict, z, grid) for grid in (levels, below)
    )
  np.testing.assert_allclose(at_one, at_margin, atol=5e-6)


def test_published_grids():
  # The double shift of FlowMatchEuler, as printed by diffusers 0.42.1.
  grid = schedules.flow_match_euler_schedule(5, shift=3.0)
  expected = [1, 0.90036, 0.75112, 0.50299, 0.00893, 0]
  np.testing.assert_allclose(grid.sigmas, expected, atol=5e-6)
  assert grid.timesteps == grid.sigmas[:-1]

  grid = schedules.wan_unipc_schedule(50, shift=5.0)
  assert grid.sigmas[0] == np.float32(1 - 1e-6) and grid.sigmas[-1] == 0
  assert grid.timesteps[0] == np.float32(0.999) and len(grid.timesteps) == 50

  grid = schedules.flow_dpm_schedule(50, shift=5.0)
  assert 0.999 < grid.sigmas[0] < 1 and grid.timesteps[0] == np.float32(0.999)
  for name in ('wan_unipc_schedule', 'flow_dpm_schedule'):
    grid = getattr(schedules, name)(7, shift=3.0)
    thousandths = 1000 * np.array(grid.timesteps)
    np.testing.assert_allclose(thousandths, thousandths.round(), atol=1e-4)
    gap = np.array(grid.sigmas[:-1]) - np.array(grid.timesteps)
    assert np.all(gap > -1e-7) and np.all(gap < 1e-3)
    assert np.all(np.diff(grid.sigmas) < 0) and hash(grid)


def test_steps_from_a_level_compare_as_timesteps_do():
  told = tuple(np.float32([0.999, 0.9, 0.875, 0.874, 0.1]).tolist())
  grid = schedules.Schedule((1.0,) * 6, told)
  found = [grid.steps_from(level) for level in (0.9991, 0.9, 0.875, 0.05)]
  # 0.9 in float32 is a little less, and is the timestep 900 all the same.
  assert told[1] < 0.9 and found == [0, 2, 3, 5]


@pytest.mark.parametrize('shift', [1.0, 5.0, 24.0])
def test_a_grid_of_less_strength_is_the_lower_part_of_a_longer_one(shift):
  whole = schedules.even_sigmas(8, shift=shift)
  part = schedules.even_sigmas(6, shift=shift, strength=float(whole[2]))
  np.testing.assert_allclose(part, whole[2:], atol=1e-6)
  made = schedules.make_schedule(
    'even', 3, shift=shift, solver='dpm', strength=0.3
  )
  assert made.sigmas[0] == made.timesteps[0] == np.float32(0.3)
  assert len(made.timesteps) == 3


def test_a_published_schedule_keeps_the_steps_below_a_strength():
  whole = schedules.make_schedule('published', 10, shift=3.0, solver='unipc')
  part = schedules.make_schedule(
    'published', 10, shift=3.0, solver='unipc', strength=0.7
  )
  count = len(part.timesteps)
  assert part.sigmas == whole.sigmas[-count - 1 :] and 0 < count < 10
  assert part.timesteps == whole.timesteps[-count:]
  assert part.sigmas[0] <= 0.7 < whole.sigmas[-count - 2]


def test_a_grid_without_its_first_steps():
  grid = schedules.make_schedule('published', 5, shift=3.0, solver='unipc')
  short = grid.without_first(2)
  assert (
    short.sigmas == grid.sigmas[2:] and short.timesteps == grid.timesteps[2:]
  )
  assert grid.without_first(0) == grid
  with pytest.raises(
    ValueError, match='zero_steps=5 of 5 steps: expected less'
  ):
    grid.without_first(5)


def test_grid_falls_from_one_to_zero_and_shifts():
  plain, moved = schedules.even_sigmas(10), schedules.even_sigmas(10, shift=5.0)
  for grid in (plain, moved):
    assert grid[0] == 1 and grid[-1] == 0 and np.all(np.diff(grid) < 0)
  assert moved.shape == (11,) and moved.dtype == np.float32
  np.testing.assert_allclose(moved, 5 * plain / (1 + 4 * plain), rtol=1e-6)


def test_refuses():
  with pytest.raises(ValueError, match='steps=0.*change --steps'):
    schedules.even_sigmas(0)
  for name in (
    'wan_unipc_schedule',
    'flow_dpm_schedule',
    'flow_match_euler_schedule',
  ):
    with pytest.raises(ValueError, match='steps=5, shift=0.*--shift'):
      getattr(schedules, name)(5, shift=0)
  with pytest.raises(ValueError, match="solver 'rk4': expected one of"):
    solvers.get('rk4')


@pytest.mark.parametrize('strength', [0.0, -0.5, 1.1])
@pytest.mark.parametrize('name', schedules.SCHEDULES)
def test_refuses_a_strength(name, strength):
  with pytest.raises(
    ValueError, match=f'strength={strength}: expected more th'
  ):
    schedules.make_schedule(
      name, 4, shift=1.0, solver='unipc', strength=strength
    )


def test_refuses_a_strength_below_every_published_step():
  with pytest.raises(ValueError, match='strength=0.01: expected at least 0.'):
    schedules.make_schedule(
      'published', 4, shift=3.0, solver='unipc', strength=0.01
    )
