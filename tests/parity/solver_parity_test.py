"""Solvers and their schedules against diffusers, live, on a linear velocity."""

import jax
import numpy as np
import pytest

from spacetime.diffusion import schedules, solvers
from tests.parity import golden_cases, published_solvers

pytestmark = pytest.mark.parity


@pytest.mark.parametrize('name, published', list(golden_cases.SOLVERS.items()))
@pytest.mark.parametrize('steps', [50, 20, 10, 2])
@pytest.mark.parametrize('shift', [3.0, 5.0, 8.0])
def test_every_step_agrees_with_diffusers(name, published, steps, shift):
  noise = golden_cases.noise()
  expected = published_solvers.trace(
    published, golden_cases.velocity, noise, steps=steps, shift=shift
  )
  schedule = getattr(schedules, published)(steps, shift=shift)
  trace = []

  def denoise(z, t, cache):
    trace.append(np.asarray(z))
    return golden_cases.velocity(z, t), cache

  with jax.disable_jit():
    z = solvers.solve(denoise, noise, schedule, solver=solvers.get(name))
  trace = np.stack([*trace, z])
  print('difference', np.abs(trace - expected).max(), np.abs(expected).max())
  assert trace.shape == expected.shape
  np.testing.assert_allclose(trace, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize('published', list(golden_cases.SOLVERS.values()))
@pytest.mark.parametrize('steps', [1, 2, 7, 50, 200])
@pytest.mark.parametrize('shift', [1.0, 3.0, 16.0])
def test_sigmas_and_timesteps_are_those_of_diffusers(published, steps, shift):
  scheduler = published_solvers.build(published, shift)
  scheduler.set_timesteps(steps)
  schedule = getattr(schedules, published)(steps, shift=shift)
  np.testing.assert_allclose(
    schedule.sigmas, scheduler.sigmas, atol=1e-7, rtol=0
  )
  np.testing.assert_allclose(
    1000 * np.array(schedule.timesteps), scheduler.timesteps, atol=1e-4, rtol=0
  )
