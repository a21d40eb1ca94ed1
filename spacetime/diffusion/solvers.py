"""Euler, Heun, DPM++ 2M and UniPC, as scans over a grid of sigmas.

A solver takes `predict(z_Bfhwc, t) -> velocity` and falling sigmas and carries
the latents from noise to data; it knows nothing of networks. Timesteps may
differ from the sigmas: published schedules round them.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.diffusion import multistep

Predict = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Solver:
  """A solver in parts, so that a run can be left at a level and taken up by
  another network there.

  Attributes:
    begin: z_Bfhwc -> carry, before the first step.
    step: (predict, carry, memory, t, sigma, next sigma, *row) -> (carry,
      memory), where predict is (z_Bfhwc, level, memory) -> (velocity, memory).
    end: carry -> z_Bfhwc, after the last step.
    tables: (sigmas, timesteps) -> coefficients of the steps, (R, K).
  """

  begin: Callable
  step: Callable
  end: Callable
  tables: Callable = lambda sigmas, timesteps: ()

  def __call__(
    self,
    predict: Predict,
    z_Bfhwc: jax.Array,
    sigmas: Sequence[float],
    *,
    timesteps: Sequence[float] | None = None,
  ) -> jax.Array:
    """Carries latents from the first level to 0.

    Args:
      predict: (z_Bfhwc, level) -> velocity.
      z_Bfhwc: latents at the first level.
      sigmas: falling to 0, (K + 1,).
      timesteps: sigmas that predict is given at each step, (K,); else `sigmas`.

    Returns:
      z_Bfhwc at level 0.
    """
    carry = self.advance(
      predict, self.begin(z_Bfhwc), sigmas, timesteps=timesteps
    )
    return self.end(carry)

  def advance(
    self,
    predict: Predict,
    carry,
    sigmas: Sequence[float],
    *,
    timesteps: Sequence[float] | None = None,
    span: tuple[int, int | None] = (0, None),
  ):
    """The steps of a span (first, stop) of all of them: carry -> carry."""
    return self.advance_with(
      lambda z, t, memory: (predict(z, t), memory),
      carry,
      (),
      sigmas,
      timesteps=timesteps,
      span=span,
    )[0]

  def advance_with(
    self,
    predict: Callable,
    carry,
    memory,
    sigmas: Sequence[float],
    *,
    timesteps: Sequence[float] | None = None,
    span: tuple[int, int | None] = (0, None),
  ):
    """As advance, of a predict that remembers its earlier calls.

    Args:
      predict: (z_Bfhwc, level, memory) -> (velocity, memory).
      carry: of the solver, before the span.
      memory: a tree of arrays, whose shapes stay as they are.
      sigmas: falling to 0, (K + 1,).
      timesteps: as of __call__.
      span: as of advance.

    Returns:
      (carry, memory) after the span.
    """
    sigmas = np.asarray(sigmas, np.float32)
    timesteps = (
      sigmas[:-1] if timesteps is None else np.asarray(timesteps, np.float32)
    )
    rows = (timesteps, sigmas[:-1], sigmas[1:])
    rows += tuple(np.float32(self.tables(sigmas, timesteps)))
    rows = tuple(jnp.asarray(row[slice(*span)]) for row in rows)
    return jax.lax.scan(
      lambda at, row: (self.step(predict, *at, *row), None),
      (carry, memory),
      rows,
    )[0]


def _itself(z):
  return z


def _euler_step(predict, z, memory, t, sigma, sigma_next):
  v, memory = predict(z, t, memory)
  return z + (sigma_next - sigma) * v, memory


# First order, one prediction a step; exact on a straight path.
euler = Solver(_itself, _euler_step, _itself)


def _heun_tables(sigmas, timesteps):
  return np.append(timesteps[1:], 0.0)[None]


def _heun_step(predict, z, memory, t, sigma, sigma_next, t_next):
  v, memory = predict(z, t, memory)
  v_end, memory = jax.lax.cond(
    sigma_next > 0,
    lambda: predict(z + (sigma_next - sigma) * v, t_next, memory),
    lambda: (v, memory),
  )
  return z + (sigma_next - sigma) * 0.5 * (v + v_end), memory


# Second order, two predictions a step; the last step, to 0, is Euler's.
# Source: Karras et al. 2022 (EDM), arXiv 2206.00364, algorithm 1.
heun = Solver(_itself, _heun_step, _itself, _heun_tables)


def _dpm_begin(z):
  return z, jnp.zeros_like(z)


def _dpm_step(
  predict, carry, memory, t, sigma, sigma_next, advance, extrapolate
):
  z, before = carry
  v, memory = predict(z, t, memory)
  x = z - sigma * v
  z = z + advance * (x - z) + extrapolate * (x - before)
  return (z, x), memory


def _dpm_end(carry):
  return carry[0]


def _dpm_tables(sigmas, timesteps):
  return multistep.weights(sigmas)[:2]


# DPM++ 2M: second order, one prediction a step; its first step and its last,
# to level 0, are of first order.
# Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2, with signal 1 - t and
# noise t.
dpm = Solver(_dpm_begin, _dpm_step, _dpm_end, _dpm_tables)


def _unipc_begin(z):
  return z, jnp.zeros_like(z), jnp.zeros_like(z)


def _unipc_step(
  predict,
  carry,
  memory,
  t,
  sigma,
  sigma_next,
  advance,
  extrapolate,
  backward,
  forward,
):
  corrected, x_1, x_2 = carry
  # Of the step that ends here, whose start was `corrected`.
  base = corrected + advance * (x_1 - corrected)
  z = base + extrapolate * (x_1 - x_2)
  v, memory = predict(z, t, memory)
  x = z - sigma * v
  corrected = base + backward * (x_2 - x_1) + forward * (x - x_1)
  return (corrected, x, x_1), memory


def _unipc_end(carry):
  corrected, x, _ = carry
  return corrected + (x - corrected)


def _unipc_tables(sigmas, timesteps):
  # A row holds the step that ends at its level; none ends at the first.
  return [np.append(0.0, table[:-1]) for table in multistep.weights(sigmas)]


# UniPC of order 2 (bh2), Wan's solver: one prediction a step. DPM++ 2M predicts
# the next latents; the prediction there also corrects the step that led to
# them. The first step and the last, to level 0, are of first order.
# Source: Zhao et al. 2023, arXiv 2302.04867: multistep, of the predicted
# sample, B_2(h) = e^h - 1; with signal 1 - t and noise t.
unipc = Solver(_unipc_begin, _unipc_step, _unipc_end, _unipc_tables)


SOLVERS = {'euler': euler, 'heun': heun, 'dpm': dpm, 'unipc': unipc}


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
