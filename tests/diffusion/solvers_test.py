"""Solvers and schedules on problems whose solution is known; no network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import SettingError
from spacetime.diffusion import schedules, solvers
from spacetime.diffusion.schedules import Schedule

SHAPE = (2, 3, 4, 5, 6)
# Those that draw no noise on the way; sampler_test has the others.
DETERMINISTIC = sorted(
  name for name in solvers.SOLVERS if not solvers.get(name).renoises
)
PUBLISHED = ('wan_unipc_schedule', 'flow_dpm_schedule')


def solve(name, velocity, z, schedule):
  """`solvers.solve` with velocity(z, t), without a cache."""
  return solvers.solve(
    lambda z, t, cache: (velocity(z, t), cache),
    z,
    schedule,
    solver=solvers.get(name),
  )


def one():
  return jnp.ones((1, 1, 1, 1, 1))


def draw(seed=0):
  return jax.random.normal(jax.random.key(seed), SHAPE)


def wave(z, t):
  return -z * jnp.cos(3 * t)


def error(name, steps):
  """Error on dz/dt = -z cos(3 t), z(1) = 1, whose z(0) is exp(sin(3) / 3)."""
  with jax.enable_x64(False):
    z = solve(name, wave, one(), schedules.even_schedule(steps))
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
  moves it to 2 + 0.5 * 1."""

  def velocity(z, t):
    deviation = jnp.sqrt(jnp.square(0.5 * (1 - t)) + jnp.square(t))
    slope = (t - 0.25 * (1 - t)) / jnp.square(deviation)
    return -2 + slope * (z - 2 * (1 - t))

  z = solve(name, velocity, one(), schedules.even_schedule(steps))
  return abs(float(z[0, 0, 0, 0, 0]) - 2.5)


@pytest.mark.parametrize(
  'name, order', [('euler', 1), ('heun', 2), ('dpm', 2), ('unipc', 2)]
)
def test_order_on_the_flow_of_a_gaussian(name, order):
  steps = np.array([96, 128, 192, 256])
  errors = [gaussian(name, int(k)) for k in steps]
  measured = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
  # DPM++ approaches its order from below: 1.66 from 32 to 192 steps.
  assert abs(measured - order) < 0.25, errors


def curved(z, t):
  return jnp.sin(3 * z) * t - z


@pytest.mark.parametrize('name', DETERMINISTIC)
def test_the_cache_is_passed_from_call_to_call_in_order(name):
  """The denoiser counts its calls and keeps the last timestep."""

  def denoise(z, t, cache):
    count, last = cache
    falls = (t <= last) & (t > 0)
    return jnp.where(falls, curved(z, t), jnp.nan), (count + 1, t)

  z, solver = draw(), solvers.get(name)
  schedule = schedules.even_schedule(4)
  at, cache = solver.init(z), (jnp.int32(0), jnp.float32(1))
  for row in zip(*solver.table(schedule), strict=True):
    at, cache = solver.step(denoise, at, cache, *row)
  np.testing.assert_allclose(
    solver.finalize(at),
    solve(name, curved, z, schedule),
    rtol=1e-6,
    atol=1e-6,
  )
  assert cache[0] == (7 if name == 'heun' else 4)
  assert cache[1] == np.float32(schedule.timesteps[3])


@pytest.mark.parametrize('name', DETERMINISTIC)
def test_exact_on_a_straight_path(name):
  noise, data = draw(0), draw(1)
  for shift in (1.0, 3.0):
    schedule = schedules.even_schedule(5, shift=shift)
    z = solve(name, lambda z, t: noise - data, noise, schedule)
    np.testing.assert_allclose(z, data, atol=2e-6)


@pytest.mark.parametrize('name', DETERMINISTIC)
@pytest.mark.parametrize('steps', [1, 2, 3, 7])
def test_latents_of_zero_velocity_stay_to_the_last_bit(name, steps):
  z = draw()
  still = jnp.arange(3)[None, :, None, None, None] == 1
  end = solve(
    name,
    lambda z, t: jnp.where(still, 0.0, z * t - 1),
    z,
    schedules.even_schedule(steps),
  )
  np.testing.assert_array_equal(end[:, 1], z[:, 1])
  assert np.all(np.isfinite(end)) and np.abs(end - z)[:, 0].max() > 0.1


@pytest.mark.parametrize('name', DETERMINISTIC)
@pytest.mark.parametrize('steps', [2, 3, 8])
def test_the_denoiser_is_called_with_timesteps_not_sigmas(name, steps):
  seen = []

  def velocity(z, t):
    seen.append(float(t))
    return z

  even = schedules.even_schedule(steps)
  half = Schedule(even.sigmas, tuple(t / 2 for t in even.timesteps))
  with jax.disable_jit():
    solve(name, velocity, one(), even)
    plain, seen = seen, []
    solve(name, velocity, one(), half)
  # Heun predicts at both ends of a step, but for the last.
  calls = 2 * steps - 1 if name == 'heun' else steps
  assert len(plain) == len(seen) == calls
  assert sorted(set(plain)) == sorted(even.timesteps)
  np.testing.assert_array_equal(np.array(plain) / 2, seen)


@pytest.mark.parametrize('name', ['dpm', 'unipc'])
def test_the_last_step_of_multistep_solvers_is_the_sample(name):
  sample = jnp.full((1, 1, 1, 1, 1), 0.25)
  # Only the last prediction is the sample.
  z = solve(
    name,
    lambda z, t: (z - jnp.where(t < 0.3, sample, t)) / t,
    sample + 1,
    schedules.even_schedule(4),
  )
  np.testing.assert_allclose(z, sample, atol=1e-6)


@pytest.mark.parametrize('name', ['dpm', 'unipc'])
def test_a_start_at_one_is_as_good_as_just_below(name):
  at_one = schedules.even_schedule(4)
  below = Schedule((1 - 1e-6, *at_one.sigmas[1:]), at_one.timesteps)
  with np.errstate(all='raise'):
    ends = [solve(name, wave, one(), s) for s in (at_one, below)]
  np.testing.assert_allclose(*ends, atol=5e-6)


def test_published_schedules():
  # The double shift of FlowMatchEuler, as printed by diffusers 0.42.1.
  schedule = schedules.flow_match_euler_schedule(5, shift=3.0)
  expected = [1, 0.90036, 0.75112, 0.50299, 0.00893, 0]
  np.testing.assert_allclose(schedule.sigmas, expected, atol=5e-6)
  assert schedule.timesteps == schedule.sigmas[:-1]

  schedule = schedules.wan_unipc_schedule(50, shift=5.0)
  assert schedule.sigmas[0] == np.float32(1 - 1e-6)
  assert schedule.sigmas[-1] == 0 and schedule.steps == 50
  assert schedule.timesteps[0] == np.float32(0.999)

  schedule = schedules.flow_dpm_schedule(50, shift=5.0)
  assert 0.999 < schedule.sigmas[0] < 1
  assert schedule.timesteps[0] == np.float32(0.999)
  for name in PUBLISHED:
    schedule = getattr(schedules, name)(7, shift=3.0)
    thousandths = 1000 * np.array(schedule.timesteps)
    np.testing.assert_allclose(thousandths, thousandths.round(), atol=1e-4)
    gap = np.array(schedule.sigmas[:-1]) - np.array(schedule.timesteps)
    assert np.all(gap > -1e-7) and np.all(gap < 1e-3)
    assert np.all(np.diff(schedule.sigmas) < 0) and hash(schedule)


def test_steps_from_compares_in_thousandths():
  timesteps = tuple(np.float32([0.999, 0.9, 0.875, 0.874, 0.1]).tolist())
  schedule = Schedule((1.0,) * 6, timesteps)
  counts = [schedule.steps_from(t) for t in (0.9991, 0.9, 0.875, 0.05)]
  # 0.9 in float32 is a little less, and is the timestep 900 all the same.
  assert timesteps[1] < 0.9 and counts == [0, 2, 3, 5]


@pytest.mark.parametrize('shift', [1.0, 5.0, 24.0])
def test_a_schedule_of_less_strength_is_the_end_of_a_longer_one(shift):
  long = schedules.even_schedule(8, shift=shift).sigmas
  short = schedules.even_schedule(6, shift=shift, strength=long[2]).sigmas
  np.testing.assert_allclose(short, long[2:], atol=1e-6)
  schedule = schedules.make_schedule(
    'even', 3, shift=shift, solver='dpm', strength=0.3
  )
  assert schedule.sigmas[0] == schedule.timesteps[0] == np.float32(0.3)
  assert schedule.steps == 3


def test_a_published_schedule_keeps_the_steps_below_a_strength():
  long, short = (
    schedules.make_schedule(
      'published', 10, shift=3.0, solver='unipc', strength=strength
    )
    for strength in (1.0, 0.7)
  )
  assert short.sigmas == long.sigmas[-short.steps - 1 :]
  assert short.timesteps == long.timesteps[-short.steps :]
  assert 0 < short.steps < 10
  assert short.sigmas[0] <= 0.7 < long.sigmas[-short.steps - 2]


def test_a_schedule_without_its_first_steps():
  schedule = schedules.make_schedule('published', 5, shift=3.0, solver='unipc')
  short = schedule.without_first(2)
  assert short.sigmas == schedule.sigmas[2:]
  assert short.timesteps == schedule.timesteps[2:]
  assert schedule.without_first(0) == schedule
  with pytest.raises(SettingError, match='zero_steps=5: expected less than th'):
    schedule.without_first(5)


def test_an_even_schedule_falls_from_one_to_zero_and_shifts():
  plain, shifted = (
    np.float32(schedules.even_schedule(10, shift=shift).sigmas)
    for shift in (1.0, 5.0)
  )
  for sigmas in (plain, shifted):
    assert sigmas[0] == 1 and sigmas[-1] == 0 and np.all(np.diff(sigmas) < 0)
  assert shifted.shape == (11,)
  schedule = schedules.make_schedule('even', 10, shift=5.0, solver='heun')
  assert schedule.sigmas == tuple(shifted.tolist())
  assert schedule.timesteps == schedule.sigmas[:-1]
  np.testing.assert_allclose(shifted, 5 * plain / (1 + 4 * plain), rtol=1e-6)


def test_refuses():
  with pytest.raises(SettingError, match='^shift=1e.300: expected at most 10'):
    schedules.even_schedule(4, shift=1e300)
  with pytest.raises(SettingError, match='^steps=0: expected 1 or more, at'):
    schedules.even_schedule(0)
  for name in (*PUBLISHED, 'flow_match_euler_schedule'):
    with pytest.raises(SettingError, match='^shift=0: expected more than 0$'):
      getattr(schedules, name)(5, shift=0)
  with pytest.raises(SettingError, match="solver='rk4': expected one of"):
    solvers.get('rk4')
  with pytest.raises(SettingError, match="schedule='odd': expected"):
    schedules.make_schedule('odd', 5, shift=1.0, solver='euler')
  with pytest.raises(SettingError, match="solver='heun': expected one of"):
    schedules.make_schedule('published', 5, shift=1.0, solver='heun')


@pytest.mark.parametrize('strength', [0.0, -0.5, 1.1])
@pytest.mark.parametrize('name', schedules.SCHEDULES)
def test_refuses_a_strength(name, strength):
  with pytest.raises(
    SettingError, match=f'strength={strength}: expected more th'
  ):
    schedules.make_schedule(
      name, 4, shift=1.0, solver='unipc', strength=strength
    )


def test_refuses_a_strength_below_every_published_step():
  with pytest.raises(SettingError, match='strength=0.01: expected at least 0.'):
    schedules.make_schedule(
      'published', 4, shift=3.0, solver='unipc', strength=0.01
    )
