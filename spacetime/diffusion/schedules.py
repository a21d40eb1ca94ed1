"""Grids of levels that a solver steps between, even or as published."""

import dataclasses

import numpy as np

from spacetime.diffusion import flow

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

  def without_first(self, steps: int) -> 'Grid':
    """The grid without its first steps.

    Raises:
      ValueError: no step would be left.
    """
    if steps >= len(self.told):
      raise ValueError(
        f'sampling.zero_steps={steps} of {len(self.told)} steps: expected '
        'less; change it, or --steps'
      )
    return Grid(self.levels[steps:], self.told[steps:])


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
