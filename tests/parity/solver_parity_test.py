"""Solvers and their grids against diffusers, live, on a linear velocity."""

import jax
import numpy as np
import pytest

from spacetime.diffusion import schedules, solvers
from tests.parity import golden_cases, published_solvers

pytestmark = pytest.mark.parity


@pytest.mark.parametrize('name, grid', list(golden_cases.SOLVERS.items()))
@pytest.mark.parametrize('steps', [50, 20, 10, 2])
@pytest.mark.parametrize('shift', [3.0, 5.0, 8.0])
def test_every_step_agrees_with_diffusers(name, grid, steps, shift):
  noise = golden_cases.noise()
  expected = published_solvers.trace(
    grid, golden_cases.velocity, noise, steps=steps, shift=shift
  )
  levels = getattr(schedules, grid)(steps, shift=shift)
  seen = []

  def predict(z, t):
    seen.append(np.asarray(z))
    return golden_cases.velocity(z, t)

  with jax.disable_jit():
    z = solvers.get(name)(
      predict, noise, levels.sigmas, timesteps=levels.timesteps
    )
  found = np.stack([*seen, z])
  print('difference', np.abs(found - expected).max(), np.abs(expected).max())
  assert found.shape == expected.shape
  np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize('grid', list(golden_cases.SOLVERS.values()))
@pytest.mark.parametrize('steps', [1, 2, 7, 50, 200])
@pytest.mark.parametrize('shift', [1.0, 3.0, 16.0])
def test_levels_and_timesteps_are_those_of_diffusers(grid, steps, shift):
  scheduler = published_solvers.build(grid, shift)
  scheduler.set_timesteps(steps)
  found = getattr(schedules, grid)(steps, shift=shift)
  np.testing.assert_allclose(found.sigmas, scheduler.sigmas, atol=1e-7, rtol=0)
  np.testing.assert_allclose(
    1000 * np.array(found.timesteps), scheduler.timesteps, atol=1e-4, rtol=0
  )
