"""Solvers of the flow's ordinary differential equation, as scans.

A solver takes `predict(z_Bfhwc, t) -> velocity` and a falling grid of levels
and carries the latents from noise to data; it knows nothing of networks. The
network may be told other levels than those that the solver steps between:
published schedules round them.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spacetime import flow

Predict = Callable[[jax.Array, jax.Array], jax.Array]

# Wan's schedule starts this much below 1, where the log-ratio of signal to
# noise is infinite.
MARGIN = 1e-6


@dataclasses.dataclass(frozen=True)
class Grid:
  """A published schedule of levels.

  Attributes:
    levels: falling to 0, K + 1 of them, float32; what the solver steps between.
    told: K levels, float32; what the network is told at each step.
  """

  levels: tuple[float, ...]
  told: tuple[float, ...]

  def steps_from(self, level: float) -> int:
    """How many steps, the first ones, are told this level or a higher one."""
    # As the published code compares: in thousandths, of which 0.9 in float32
    # would be a little less than 900.
    told = np.round(1000 * np.float64(self.told), 4)
    return int(np.sum(told >= round(1000 * level, 4)))


def time_grid(
  steps: int, *, shift: float = 1.0, strength: float = 1.0
) -> np.ndarray:
  """Levels strength = t_0 > ... > t_K = 0, float32 (K + 1,), computed in
  float64, evenly spaced before the shift.

  Raises:
    ValueError: fewer than one step, a shift that is not positive, or a strength
      outside (0, 1].
  """
  _check(steps, shift)
  _check_strength(strength)
  # The inverse of a shift is one by its inverse.
  start = flow.shifted(strength, 1 / shift)
  return flow.shifted(np.linspace(start, 0.0, steps + 1), shift).astype(
    np.float32
  )


def wan_unipc_grid(steps: int, *, shift: float) -> Grid:
  """Wan's schedule with UniPC: the network is told whole thousandths.

  Raises:
    ValueError: fewer than one step or a shift that is not positive.

  Source: diffusers 0.42.1, UniPCMultistepScheduler with flow sigmas.
  """
  _check(steps, shift)
  levels = flow.shifted(np.linspace(1.0, 0.001, steps + 1)[:-1], shift)
  levels[0] = min(levels[0], 1 - MARGIN)
  return _grid(levels, np.floor(1000 * levels) / 1000)


def flow_dpm_grid(steps: int, *, shift: float) -> Grid:
  """The flow schedule of diffusers' DPM++, which starts below 1.

  Raises:
    ValueError: fewer than one step or a shift that is not positive.

  Source: diffusers 0.42.1, DPMSolverMultistepScheduler with flow sigmas.
  """
  _check(steps, shift)
  levels = 1.0 - np.linspace(1.0, 0.001, steps + 1)
  levels = flow.shifted(levels, shift)[:0:-1]
  return _grid(levels, np.floor(1000 * levels) / 1000)


def flow_match_euler_grid(steps: int, *, shift: float) -> Grid:
  """The schedule of diffusers' FlowMatchEuler: its low end is shifted twice.

  Raises:
    ValueError: fewer than one step or a shift that is not positive.

  Source: diffusers 0.42.1, FlowMatchEulerDiscreteScheduler.
  """
  _check(steps, shift)
  low = flow.shifted(0.001, shift)
  levels = flow.shifted(np.linspace(1.0, low, steps), shift)
  return _grid(levels, levels)


def _check(steps: int, shift: float) -> None:
  if steps < 1 or shift <= 0:
    raise ValueError(
      f'steps={steps}, shift={shift}: expected steps >= 1 and shift > 0; '
      'change --steps or --shift'
    )


def _check_strength(strength: float) -> None:
  if not 0 < strength <= 1:
    raise ValueError(
      f'strength={strength}: expected more than 0, at most 1; change --strength'
    )


def _grid(levels: np.ndarray, told: np.ndarray) -> Grid:
  levels = np.append(levels, 0.0)
  return Grid(*(tuple(x.astype(np.float32).tolist()) for x in (levels, told)))


@dataclasses.dataclass(frozen=True)
class Solver:
  """A solver in parts, so that a run can be left at a level and taken up by
  another network there.

  Attributes:
    begin: z_Bfhwc -> carry, before the first step.
    step: (predict, carry, told, level, next level, *row) -> carry.
    end: carry -> z_Bfhwc, after the last step.
    tables: (levels, told) -> what `step` gets besides: (R, K), a row of each.
  """

  begin: Callable
  step: Callable
  end: Callable
  tables: Callable = lambda levels, told: ()

  def __call__(
    self,
    predict: Predict,
    z_Bfhwc: jax.Array,
    levels: Sequence[float],
    *,
    told: Sequence[float] | None = None,
  ) -> jax.Array:
    """Carries latents from the first level to 0.

    Args:
      predict: (z_Bfhwc, level) -> velocity.
      z_Bfhwc: latents at the first level.
      levels: falling to 0, (K + 1,).
      told: levels that predict is given at each step, (K,); else `levels`.

    Returns:
      z_Bfhwc at level 0.
    """
    carry = self.advance(predict, self.begin(z_Bfhwc), levels, told=told)
    return self.end(carry)

  def advance(
    self,
    predict: Predict,
    carry,
    levels: Sequence[float],
    *,
    told: Sequence[float] | None = None,
    span: tuple[int, int | None] = (0, None),
  ):
    """The steps of a span (first, stop) of all of them: carry -> carry."""
    levels = np.asarray(levels, np.float32)
    told = levels[:-1] if told is None else np.asarray(told, np.float32)
    rows = (told, levels[:-1], levels[1:])
    rows += tuple(np.float32(self.tables(levels, told)))
    rows = tuple(jnp.asarray(row[slice(*span)]) for row in rows)
    return jax.lax.scan(
      lambda carry, row: (self.step(predict, carry, *row), None), carry, rows
    )[0]


def _itself(z):
  return z


def _euler_step(predict, z, told, t, s):
  return z + (s - t) * predict(z, told)


# First order, one prediction a step; exact on a straight path.
euler = Solver(_itself, _euler_step, _itself)


def _heun_tables(levels, told):
  return np.append(told[1:], 0.0)[None]


def _heun_step(predict, z, told, t, s, told_next):
  v = predict(z, told)
  v_end = jax.lax.cond(
    s > 0, lambda: predict(z + (s - t) * v, told_next), lambda: v
  )
  return z + (s - t) * 0.5 * (v + v_end)


# Second order, two predictions a step; the last step, to 0, is Euler's.
# Source: Karras et al. 2022 (EDM), arXiv 2206.00364, algorithm 1.
heun = Solver(_itself, _heun_step, _itself, _heun_tables)


def _dpm_begin(z):
  return z, jnp.zeros_like(z)


def _dpm_step(predict, carry, told, t, s, advance, extrapolate):
  z, before = carry
  x = z - t * predict(z, told)
  return z + advance * (x - z) + extrapolate * (x - before), x


def _dpm_end(carry):
  return carry[0]


def _dpm_tables(levels, told):
  return _multistep_tables(levels)[:2]


# DPM++ 2M: second order, one prediction a step; its first step and its last,
# to level 0, are of first order.
# Source: Lu et al. 2022, arXiv 2211.01095, algorithm 2, with signal 1 - t and
# noise t.
dpm = Solver(_dpm_begin, _dpm_step, _dpm_end, _dpm_tables)


def _unipc_begin(z):
  return z, jnp.zeros_like(z), jnp.zeros_like(z)


def _unipc_step(
  predict, carry, told, t, s, advance, extrapolate, backward, forward
):
  corrected, x_1, x_2 = carry
  # Of the step that ends here, whose start was `corrected`.
  base = corrected + advance * (x_1 - corrected)
  z = base + extrapolate * (x_1 - x_2)
  x = z - t * predict(z, told)
  corrected = base + backward * (x_2 - x_1) + forward * (x - x_1)
  return corrected, x, x_1


def _unipc_end(carry):
  corrected, x, _ = carry
  return corrected + (x - corrected)


def _unipc_tables(levels, told):
  # A row holds the step that ends at its level; none ends at the first.
  return [np.append(0.0, table[:-1]) for table in _multistep_tables(levels)]


# UniPC of order 2 (bh2), Wan's solver: one prediction a step. DPM++ 2M predicts
# the next latents; the prediction there also corrects the step that led to
# them. The first step and the last, to level 0, are of first order.
# Source: Zhao et al. 2023, arXiv 2302.04867: multistep, of the predicted
# sample, B_2(h) = e^h - 1; with signal 1 - t and noise t.
unipc = Solver(_unipc_begin, _unipc_step, _unipc_end, _unipc_tables)


def _multistep_tables(levels: Sequence[float]) -> np.ndarray:
  """Weights of the steps of UniPC and DPM++, float64 (4, K).

  With x the predicted sample at the start of a step, x_before the one before
  it and x_after the one at its end, z becomes

    z + advance (x - z) + extrapolate (x - x_before)           as predicted,
    z + advance (x - z) + backward (x_before - x)
      + forward (x_after - x)                                  as corrected.

  `advance` is (1 - s) (1 - e^-h) of the papers, s the level at the end: 1 - s
  / t, which is finite where the step h in the log-ratio of signal to noise is
  not.
  """
  t = np.asarray(levels, np.float32).astype(np.float64)
  steps = len(t) - 1
  advance = 1 - t[1:] / t[:-1]
  extrapolate, backward, forward = np.zeros((3, steps))
  forward[0] = 0.5 * advance[0]
  t[0] = min(t[0], np.float32(1 - MARGIN))
  ratio = np.log1p(-t[:-1]) - np.log(t[:-1])
  for i in range(1, steps - 1):
    h = ratio[i + 1] - ratio[i]
    r = (ratio[i - 1] - ratio[i]) / h
    extrapolate[i] = -0.5 * advance[i] / r
    b_h = np.expm1(-h)
    phi_1 = b_h / -h - 1
    phi_2 = phi_1 / -h - 0.5
    backward[i], forward[i] = advance[i] * np.linalg.solve(
      [[1.0, 1.0], [r, 1.0]], [phi_1 / b_h, 2 * phi_2 / b_h]
    )
    backward[i] /= r
  return np.stack([advance, extrapolate, backward, forward])


PUBLISHED = {
  'unipc': wan_unipc_grid,
  'dpm': flow_dpm_grid,
  'euler': flow_match_euler_grid,
}
SCHEDULES = ('even', 'published')


def schedule(
  name: str,
  steps: int,
  *,
  shift: float,
  solver: str,
  strength: float = 1.0,
) -> Grid:
  """The levels of a solver, evenly spaced or as its published code has them.

  Args:
    name: one of SCHEDULES.
    steps: K.
    shift: see flow.shifted.
    solver: one of SOLVERS.
    strength: the level to begin at; of a published schedule the steps below it
      are left, as the published code does.

  Raises:
    ValueError: no such schedule, no published one of this solver, or steps,
      shift and strength that make no grid.
  """
  if name not in SCHEDULES:
    raise ValueError(f'sampling.schedule={name!r}: expected one of {SCHEDULES}')
  if name == 'even':
    levels = time_grid(steps, shift=shift, strength=strength)
    levels = tuple(levels.tolist())
    return Grid(levels, levels[:-1])
  if solver not in PUBLISHED:
    raise ValueError(
      f"sampling.schedule='published' with solver {solver!r}: expected one of "
      f'{sorted(PUBLISHED)}; change --solver'
    )
  _check_strength(strength)
  grid = PUBLISHED[solver](steps, shift=shift)
  first = sum(level > strength for level in grid.levels)
  if first == steps:
    raise ValueError(
      f'strength={strength}: expected at least {grid.levels[-2]:.3f}, the last '
      f'level of {steps} steps; change --strength or --steps'
    )
  return Grid(grid.levels[first:], grid.told[first:])


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
