"""Grids of sigmas that a solver steps between, even or as published."""

import dataclasses

import numpy as np

from spacetime.diffusion import flow

# Wan's schedule starts this much below 1, where the log-ratio of signal to
# noise is infinite.
MARGIN = 1e-6


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A published schedule of sigmas.

  Attributes:
    sigmas: falling to 0, K + 1 of them, float32; what the solver steps between.
    timesteps: K noise levels, float32, the network's input at each step.
  """

  sigmas: tuple[float, ...]
  timesteps: tuple[float, ...]

  def steps_from(self, level: float) -> int:
    """Number of leading steps whose timestep is at least `level`."""
    # As the published code compares: in thousandths, of which 0.9 in float32
    # would be a little less than 900.
    timesteps = np.round(1000 * np.float64(self.timesteps), 4)
    return int(np.sum(timesteps >= round(1000 * level, 4)))

  def without_first(self, steps: int) -> 'Schedule':
    """The grid without its first steps.

    Raises:
      ValueError: no step would be left.
    """
    if steps >= len(self.timesteps):
      raise ValueError(
        f'sampling.zero_steps={steps} of {len(self.timesteps)} steps: expected '
        'less; change it, or --steps'
      )
    return Schedule(self.sigmas[steps:], self.timesteps[steps:])


def even_sigmas(
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


def wan_unipc_schedule(steps: int, *, shift: float) -> Schedule:
  """Wan's schedule with UniPC: timesteps are rounded down to thousandths.

  Raises:
    ValueError: fewer than one step or a shift that is not positive.

  Source: diffusers 0.42.1, UniPCMultistepScheduler with flow sigmas.
  """
  _check(steps, shift)
  sigmas = flow.shifted(np.linspace(1.0, 0.001, steps + 1)[:-1], shift)
  sigmas[0] = min(sigmas[0], 1 - MARGIN)
  return _grid(sigmas, np.floor(1000 * sigmas) / 1000)


def flow_dpm_schedule(steps: int, *, shift: float) -> Schedule:
  """The flow schedule of diffusers' DPM++, which starts below 1.

  Raises:
    ValueError: fewer than one step or a shift that is not positive.

  Source: diffusers 0.42.1, DPMSolverMultistepScheduler with flow sigmas.
  """
  _check(steps, shift)
  sigmas = 1.0 - np.linspace(1.0, 0.001, steps + 1)
  sigmas = flow.shifted(sigmas, shift)[:0:-1]
  return _grid(sigmas, np.floor(1000 * sigmas) / 1000)


def flow_match_euler_schedule(steps: int, *, shift: float) -> Schedule:
  """The schedule of diffusers' FlowMatchEuler: its low end is shifted twice.

  Raises:
    ValueError: fewer than one step or a shift that is not positive.

  Source: diffusers 0.42.1, FlowMatchEulerDiscreteScheduler.
  """
  _check(steps, shift)
  low = flow.shifted(0.001, shift)
  sigmas = flow.shifted(np.linspace(1.0, low, steps), shift)
  return _grid(sigmas, sigmas)


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


def _grid(sigmas: np.ndarray, timesteps: np.ndarray) -> Schedule:
  sigmas = np.append(sigmas, 0.0)
  return Schedule(
    *(tuple(x.astype(np.float32).tolist()) for x in (sigmas, timesteps))
  )


PUBLISHED = {
  'unipc': wan_unipc_schedule,
  'dpm': flow_dpm_schedule,
  'euler': flow_match_euler_schedule,
}
SCHEDULES = ('even', 'published')


def make_schedule(
  name: str,
  steps: int,
  *,
  shift: float,
  solver: str,
  strength: float = 1.0,
) -> Schedule:
  """The sigmas of a solver, evenly spaced or as its published code has them.

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
    sigmas = even_sigmas(steps, shift=shift, strength=strength)
    sigmas = tuple(sigmas.tolist())
    return Schedule(sigmas, sigmas[:-1])
  if solver not in PUBLISHED:
    raise ValueError(
      f"sampling.schedule='published' with solver {solver!r}: expected one of "
      f'{sorted(PUBLISHED)}; change --solver'
    )
  _check_strength(strength)
  grid = PUBLISHED[solver](steps, shift=shift)
  first = sum(level > strength for level in grid.sigmas)
  if first == steps:
    raise ValueError(
      f'strength={strength}: expected at least {grid.sigmas[-2]:.3f}, the last '
      f'level of {steps} steps; change --strength or --steps'
    )
  return Schedule(grid.sigmas[first:], grid.timesteps[first:])
