"""Solvers of the flow's ordinary differential equation, as scans.

A solver takes `predict(z_Bfhwc, t) -> velocity` and a falling grid of levels
and carries the latents from noise to data; it knows nothing of networks.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from spacetime import flow

Predict = Callable[[jax.Array, jax.Array], jax.Array]


def time_grid(steps: int, *, shift: float = 1.0) -> np.ndarray:
  """Levels 1 = t_0 > ... > t_K = 0, float32 (K + 1,), computed in float64.

  Raises:
    ValueError: fewer than one step or a shift that is not positive.
  """
  if steps < 1 or shift <= 0:
    raise ValueError(
      f'steps={steps}, shift={shift}: expected steps >= 1 and shift > 0; '
      'change --steps or --shift'
    )
  return flow.shifted(np.linspace(1.0, 0.0, steps + 1), shift).astype(
    np.float32
  )


def _scan(step, z_Bfhwc: jax.Array, levels: np.ndarray) -> jax.Array:
  pairs = (jnp.asarray(levels[:-1]), jnp.asarray(levels[1:]))
  z_Bfhwc, _ = jax.lax.scan(
    lambda z, pair: (step(z, *pair), None), z_Bfhwc, pairs
  )
  return z_Bfhwc


def euler(predict: Predict, z_Bfhwc: jax.Array, levels: np.ndarray):
  """First order, one prediction a step; exact on a straight path."""

  def step(z, t, s):
    return z + (s - t) * predict(z, t)

  return _scan(step, z_Bfhwc, levels)


def heun(predict: Predict, z_Bfhwc: jax.Array, levels: np.ndarray):
  """Second order, two predictions a step; the last step, to 0, is Euler's.

  Source: Karras et al. 2022 (EDM), arXiv 2206.00364, algorithm 1.
  """

  def step(z, t, s):
    v = predict(z, t)
    return z + (s - t) * 0.5 * (v + predict(z + (s - t) * v, s))

  z_Bfhwc = _scan(step, z_Bfhwc, levels[:-1])
  return euler(predict, z_Bfhwc, levels[-2:])


SOLVERS = {'euler': euler, 'heun': heun}


def get(name: str):
  """A solver by name.

  Raises:
    ValueError: no solver has that name.
  """
  if name not in SOLVERS:
    raise ValueError(
      f'solver {name!r}: expected one of {sorted(SOLVERS)}; change --solver'
    )
  return SOLVERS[name]
