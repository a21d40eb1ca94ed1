"""Solvers on problems whose solution is known; no network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import solver


def error(name, steps):
  """Error on dz/dt = -z cos(3 t), z(1) = 1, whose z(0) is exp(sin(3) / 3)."""
  predict = lambda z, t: -z * jnp.cos(3 * t)  # noqa: E731
  z = jnp.ones((1, 1, 1, 1, 1))
  with jax.enable_x64(False):
    z = solver.get(name)(predict, z, solver.time_grid(steps))
  return abs(float(z[0, 0, 0, 0, 0]) - np.exp(np.sin(3) / 3))


@pytest.mark.parametrize('name, order', [('euler', 1), ('heun', 2)])
def test_order_of_convergence(name, order):
  ratio = error(name, 16) / error(name, 32)
  # Heun's last step is of first order, over one step: the order holds.
  assert 2**order * 0.8 < ratio < 2**order * 1.35


@pytest.mark.parametrize('name', sorted(solver.SOLVERS))
def test_exact_on_a_straight_path(name):
  noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 6))
  data = jax.random.normal(jax.random.key(1), (2, 3, 4, 5, 6))
  predict = lambda z, t: noise - data  # noqa: E731
  for shift in (1.0, 3.0):
    z = solver.get(name)(predict, noise, solver.time_grid(5, shift=shift))
    np.testing.assert_allclose(z, data, atol=2e-6)


def test_grid_falls_from_one_to_zero_and_shifts():
  plain, moved = solver.time_grid(10), solver.time_grid(10, shift=5.0)
  for grid in (plain, moved):
    assert grid[0] == 1 and grid[-1] == 0 and np.all(np.diff(grid) < 0)
  assert moved.shape == (11,) and moved.dtype == np.float32
  np.testing.assert_allclose(moved, 5 * plain / (1 + 4 * plain), rtol=1e-6)


def test_refuses():
  with pytest.raises(ValueError, match='steps=0.*change --steps'):
    solver.time_grid(0)
  with pytest.raises(ValueError, match="solver 'rk4': expected one of"):
    solver.get('rk4')
