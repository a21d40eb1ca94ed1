"""Schedules of noise levels for the solvers, even or as published."""

import dataclasses
import numbers
from collections.abc import Sequence

import numpy as np

from spacetime import SettingError
from spacetime.diffusion import flow

# Wan's schedule starts this much below 1, where the log-ratio of signal to
# noise is infinite.
MARGIN = 1e-6
MAX_STEPS = 10_000  # more are a slip of the keyboard


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Noise levels of a run; hashable, so that equal samplers compile once.

  Attributes:
    sigmas: K + 1 levels that the solver steps between, float32, falling to 0.
    timesteps: K levels, float32, the network's input at each step.
  """

  sigmas: tuple[float, ...]
  timesteps: tuple[float, ...]

  @property
  def steps(self) -> int:
    """K."""
    return len(self.timesteps)

  def steps_from(self, t: float) -> int:
    """Number of leading steps whose timestep is at least t."""
    # As the published code compares: in thousandths, of which 0.9 in float32
    # would be a little less than 900.
    timesteps = np.round(1000 * np.float64(self.timesteps), 4)
    return int(np.sum(timesteps >= round(1000 * t, 4)))

  def without_first(self, steps: int) -> 'Schedule':
    """The schedule without its first steps.

    Raises:
      SettingError: no step would be left.
    """
    if steps >= self.steps:
      raise SettingError(
        'zero_steps',
        steps,
        f'less than the {self.steps} `steps` of the schedule',
      )
    return Schedule(self.sigmas[steps:], self.timesteps[steps:])


def even_schedule(
  steps: int, *, shift: float = 1.0, strength: float = 1.0
) -> Schedule:
  """Levels evenly spaced before the shift, computed in float64.

  Args:
    steps: K.
    shift: see flow.shifted.
    strength: first sigma.

  Raises:
    SettingError: fewer than one step, a shift that is not positive, or a
      strength outside (0, 1].
  """
  _check(steps, shift)
  _check_strength(strength)
  # The inverse of a shift is one by its inverse.
  start = flow.shifted(strength, 1 / shift)
  sigmas = flow.shifted(np.linspace(start, 0.0, steps + 1), shift)
  sigmas = tuple(sigmas.astype(np.float32).tolist())
  return Schedule(sigmas, sigmas[:-1])


def timesteps_schedule(
  timesteps: Sequence[float],
  *,
  shift: float = 1.0,
  schedule: str = 'even',
  strength: float = 1.0,
) -> Schedule:
  """The schedule of timesteps that a distilled model was trained at.

  Args:
    timesteps: K falling values above 0, in thousandths, before the shift.
    shift: see flow.shifted.
    schedule: one of SCHEDULES; 'rounded' rounds what the network sees to whole
      thousandths.
    strength: noise level to begin at; the steps above it are left out.

  Raises:
    SettingError: timesteps that do not fall, are outside of (0, 1000] or begin
      at 1 or below, as noise levels do; a strength that leaves no step; or no
      such schedule.
  """
  try:
    values = np.asarray(timesteps, np.float64)
  except (TypeError, ValueError):
    values = np.zeros(0)
  if not isinstance(timesteps, (list, tuple)) or values.ndim != 1:
    values = np.zeros(0)
  falling = bool((np.diff(values) < 0).all())
  if not len(values) or not falling or not 0 < values[-1] <= values[0] <= 1000:
    raise SettingError(
      'timesteps',
      timesteps,
      'falling numbers of at most 1000, above 0, such as 1000,750,500,250',
    )
  if values[0] <= 1:
    raise SettingError(
      'timesteps',
      timesteps,
      'thousandths before the shift, such as 1000,750,500,250, and no noise '
      'levels',
    )
  _check_name(schedule)
  _check(len(values), shift)
  _check_strength(strength)
  sigmas = flow.shifted(values / 1000, shift)
  sigmas = sigmas[sigmas <= max(strength, sigmas[-1])]
  if sigmas[0] > strength:
    raise SettingError(
      'strength',
      strength,
      f'at least {sigmas[-1]:.3f}, the last noise level of `timesteps`',
    )
  rounded = np.round(sigmas, 3) if schedule == 'rounded' else sigmas
  return _to_zero(sigmas, rounded)


def wan_unipc_schedule(steps: int, *, shift: float) -> Schedule:
  """Wan's schedule with UniPC; timesteps are rounded down to thousandths.

  Raises:
    SettingError: fewer than one step or a shift that is not positive.

  Source: diffusers 0.42.1, UniPCMultistepScheduler with flow sigmas.
  """
  _check(steps, shift)
  sigmas = flow.shifted(np.linspace(1.0, 0.001, steps + 1)[:-1], shift)
  sigmas[0] = min(sigmas[0], 1 - MARGIN)
  return _to_zero(sigmas, np.floor(1000 * sigmas) / 1000)


def flow_dpm_schedule(steps: int, *, shift: float) -> Schedule:
  """The flow schedule of diffusers' DPM++, which starts below 1.

  Raises:
    SettingError: fewer than one step or a shift that is not positive.

  Source: diffusers 0.42.1, DPMSolverMultistepScheduler with flow sigmas.
  """
  _check(steps, shift)
  sigmas = 1.0 - np.linspace(1.0, 0.001, steps + 1)
  sigmas = flow.shifted(sigmas, shift)[:0:-1]
  return _to_zero(sigmas, np.floor(1000 * sigmas) / 1000)


def flow_match_euler_schedule(steps: int, *, shift: float) -> Schedule:
  """The schedule of diffusers' FlowMatchEuler: its low end is shifted twice.

  Raises:
    SettingError: fewer than one step or a shift that is not positive.

  Source: diffusers 0.42.1, FlowMatchEulerDiscreteScheduler.
  """
  _check(steps, shift)
  low = flow.shifted(0.001, shift)
  sigmas = flow.shifted(np.linspace(1.0, low, steps), shift)
  return _to_zero(sigmas, sigmas)


def _check_name(schedule: str) -> None:
  if schedule not in SCHEDULES:
    raise SettingError('schedule', schedule, f'one of {SCHEDULES}')


def _check(steps: int, shift: float) -> None:
  if not isinstance(steps, numbers.Integral):
    raise SettingError('steps', steps, 'a whole number')
  if not 1 <= steps <= MAX_STEPS:
    raise SettingError('steps', steps, f'1 or more, at most {MAX_STEPS:,}')
  if shift <= 0:
    raise SettingError('shift', shift, 'more than 0')
  if not shift <= flow.MAX_SHIFT:
    raise SettingError('shift', shift, f'at most {flow.MAX_SHIFT}')


def _check_strength(strength: float) -> None:
  if not 0 < strength <= 1:
    raise SettingError('strength', strength, 'more than 0, at most 1')


def _to_zero(sigmas: np.ndarray, timesteps: np.ndarray) -> Schedule:
  sigmas = np.append(sigmas, 0.0)
  return Schedule(
    *(tuple(x.astype(np.float32).tolist()) for x in (sigmas, timesteps))
  )


PUBLISHED = {
  'unipc': wan_unipc_schedule,
  'dpm': flow_dpm_schedule,
  'euler': flow_match_euler_schedule,
}
SCHEDULES = ('even', 'rounded', 'published')


def make_schedule(
  name: str,
  steps: int,
  *,
  shift: float,
  solver: str,
  strength: float = 1.0,
) -> Schedule:
  """The schedule of a solver, evenly spaced or as its published code has it.

  'rounded' is evenly spaced, with timesteps rounded to thousandths.

  Args:
    name: one of SCHEDULES.
    steps: K.
    shift: see flow.shifted.
    solver: one of SOLVERS.
    strength: noise level to begin at; a published schedule drops the steps
      above it, as the published code does.

  Raises:
    SettingError: no such schedule, no published one for this solver, or steps,
      shift and strength that leave no step.
  """
  _check_name(name)
  if name != 'published':
    even = even_schedule(steps, shift=shift, strength=strength)
    if name == 'even':
      return even
    return _to_zero(np.array(even.sigmas[:-1]), np.round(even.timesteps, 3))
  if solver not in PUBLISHED:
    raise SettingError(
      'solver',
      solver,
      f'one of {sorted(PUBLISHED)}, which have a published schedule',
      hint="or set `schedule` to 'even'",
    )
  _check_strength(strength)
  schedule = PUBLISHED[solver](steps, shift=shift)
  first = sum(sigma > strength for sigma in schedule.sigmas)
  if first == steps:
    raise SettingError(
      'strength',
      strength,
      f'at least {schedule.sigmas[-2]:.3f}, the last noise level of {steps} '
      '`steps`',
    )
  return Schedule(schedule.sigmas[first:], schedule.timesteps[first:])
