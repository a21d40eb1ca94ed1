"""Sampling settings: the `sampling` section, the flags of `sample` and the
keywords of a Pipeline.

Modules that need JAX are imported where they are used, so that the help of
`sample`, which lists these fields, is quick.
"""

import dataclasses
import math
import numbers
import os
import types
import typing

from spacetime import SettingError

if typing.TYPE_CHECKING:
  from spacetime.diffusion import guidance as guidance_lib
  from spacetime.diffusion import schedules


def _setting(help: str, group: str, **default):
  return dataclasses.field(metadata={'help': help, 'group': group}, **default)


def _rcm(theta: float) -> float:
  """A time of TrigFlow, an angle, as a timestep of a straight path."""
  return 1000 * math.tan(theta) / (1 + math.tan(theta))


# Settings that distilled models were published with: lightx2v's 4-step weights
# (the noise levels 1, 15/16, 5/6 and 5/8), FastVideo's FastWan, whose timesteps
# are 1000, 757 and 522, and NVIDIA's rCM, which starts below noise.
# Source of rCM: Zheng et al. 2025, arXiv 2510.08431, and its published code.
PRESETS = {
  'lightx2v': dict(
    timesteps=(1000.0, 750.0, 500.0, 250.0),
    shift=5.0,
    solver='euler',
    schedule='even',
    guidance=1.0,
  ),
  'fastwan': dict(
    timesteps=(1000.0, 280.0, 120.0),
    shift=8.0,
    solver='renoise',
    schedule='rounded',
    guidance=1.0,
  ),
  'rcm': dict(
    timesteps=(_rcm(math.atan(80.0)), _rcm(1.5), _rcm(1.4), _rcm(1.0)),
    shift=1.0,
    solver='renoise',
    schedule='even',
    guidance=1.0,
  ),
}


# Types that values of a field's type may have, and their names in messages.
_TYPES = {
  int: (numbers.Integral, 'a whole number'),
  float: (numbers.Real, 'a number'),
  str: ((str, os.PathLike), 'a text'),
}


def check_types(settings) -> None:
  """Checks the numbers and texts of a dataclass; fields of other types, or of
  several, have checks of their own.

  Raises:
    SettingError: a value of another type.
  """
  for field in dataclasses.fields(settings):
    value, kinds = getattr(settings, field.name), (field.type,)
    if isinstance(field.type, types.UnionType):
      kinds = typing.get_args(field.type)
    if value is None and types.NoneType in kinds:
      continue
    kind, *others = [k for k in kinds if k is not types.NoneType]
    if not others and kind in _TYPES and not _is_a(kind, value):
      raise SettingError(field.name, value, _TYPES[kind][1])


def _is_a(kind: type, value) -> bool:
  return isinstance(value, _TYPES[kind][0]) and not isinstance(value, bool)


def preset_settings(name: str, *, steps: int | None = None) -> dict:
  """The settings of a preset.

  Args:
    name: a name of PRESETS.
    steps: number of steps; of rCM, fewer steps leave out the last ones.

  Raises:
    SettingError: no such preset.
  """
  if not isinstance(name, str) or name not in PRESETS:
    raise SettingError('preset', name, f'one of {sorted(PRESETS)}')
  settings = PRESETS[name]
  if name == 'rcm' and steps is not None and 1 <= steps < 4:
    settings = settings | {'timesteps': settings['timesteps'][:steps]}
  return settings


def _as_tuple(value):
  """The numbers of a list or an array as a tuple; other values as they are."""
  if hasattr(value, 'tolist'):
    value = value.tolist()
  return tuple(value) if isinstance(value, (list, range)) else value


def _layer_numbers(value):
  """One number as a tuple, and whole numbers as int: flags give floats."""
  value = (value,) if _is_a(float, value) else value
  if not isinstance(value, tuple):
    return value
  return tuple(
    int(x) if isinstance(x, float) and x.is_integer() else x for x in value
  )


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
  """Settings of the sampler; each field's metadata has its help and group.

  Temperature below 1 samples nearer to the mean: Kingma and Dhariwal 2018
  (Glow), arXiv 1807.03039, section 6, there for normalizing flows.
  """

  steps: int = _setting('Solver steps per clip, such as 16.', 'solver')
  solver: str = _setting(
    'Solver: euler, heun, dpm, unipc, or renoise (fresh noise at each step, '
    'for distilled models).',
    'solver',
  )
  guidance: float = _setting(
    'Scale of classifier-free guidance, such as 2.5; 1 is unguided and twice '
    'as fast.',
    'guidance',
  )
  interval: tuple[float, float] = _setting(
    'Noise levels between which guidance applies, such as (0, 1).', 'guidance'
  )
  shift: float = _setting(
    'Schedule shift: above 1 spends more steps at high noise, such as 3.',
    'solver',
  )
  schedule: str = _setting(
    "Spacing of the noise levels: 'even', 'rounded' (even, with timesteps "
    "rounded to thousandths) or 'published' as in diffusers.",
    'solver',
    default='even',
  )
  timesteps: tuple[float, ...] | None = _setting(
    'Timesteps of a distilled model, one a step, in thousandths before the '
    'shift, such as 1000,750,500,250; they replace `steps` and `schedule`.',
    'solver',
    default=None,
  )
  boundary: float | None = _setting(
    'Noise level below which the second of two transformers takes over; None '
    'for a model with one.',
    'solver',
    default=None,
  )
  guidance_2: float | None = _setting(
    'Scale of guidance of the second of two transformers; defaults to that of '
    'the first.',
    'guidance',
    default=None,
  )
  strength: float = _setting(
    'Noise level that an edit starts from: above 0 (nothing changes) to 1 '
    '(nothing stays), such as 0.6.',
    'solver',
    default=1.0,
  )
  guidance_kind: str = _setting(
    'Kind of guidance: cfg, cfg_zero (CFG-Zero*) or apg (adaptive projected '
    'guidance).',
    'guidance',
    default='cfg',
  )
  zero_steps: int = _setting(
    'First steps that CFG-Zero* leaves out.', 'guidance', default=1
  )
  momentum: float = _setting(
    'Momentum of adaptive projected guidance.', 'guidance', default=-0.5
  )
  norm_threshold: float | None = _setting(
    'Largest norm of the guidance update of apg; None sets no bound.',
    'guidance',
    default=None,
  )
  eta: float = _setting(
    'Share of the update parallel to the prediction that apg keeps.',
    'guidance',
    default=0.0,
  )
  skip_layers: tuple[int, ...] = _setting(
    'Layers that one more branch of guidance leaves out, such as 3 or 9,10 '
    '(skip-layer guidance, STG): shapes get firmer, a step takes longer.',
    'guidance',
    default=(),
  )
  skip_layer_scale: float = _setting(
    'Scale of skip-layer guidance, such as 1.', 'guidance', default=1.0
  )
  skip_layer_interval: tuple[float, float] = _setting(
    'Noise levels between which skip-layer guidance applies, such as (0, 1).',
    'guidance',
    default=(0.0, 1.0),
  )
  first_block_cache: float = _setting(
    'Skips all blocks but the first while its output changed by less than '
    'this share, such as 0.1; 0 skips none.',
    'solver',
    default=0.0,
  )
  rope_scaling: str = _setting(
    'RoPE scaling along time for clips longer than in training: none, riflex '
    '(lowers one frequency, against repetition) or ntk (all but the fastest).',
    'solver',
    default='none',
  )
  temperature: float = _setting(
    'Standard deviation of the initial noise. 1 matches training; 0.4 gives '
    'steadier, less varied motion.',
    'solver',
    default=1.0,
  )

  def __post_init__(self):
    from spacetime.diffusion import solvers
    from spacetime.models.transformer import rope

    # Hashable, as programs' keys.
    for name in ('interval', 'timesteps', 'skip_layers', 'skip_layer_interval'):
      object.__setattr__(self, name, _as_tuple(getattr(self, name)))
    object.__setattr__(self, 'skip_layers', _layer_numbers(self.skip_layers))
    check_types(self)
    solvers.get(self.solver)
    if isinstance(self.timesteps, tuple) and (
      len(self.timesteps) != self.steps
    ):
      raise SettingError(
        'steps',
        self.steps,
        f'{len(self.timesteps)}, the number of `timesteps`',
        hint='leave it out, or change `timesteps`',
      )
    self.make_schedule()  # checks guidance, too
    if not 0 <= self.first_block_cache < 1:
      raise SettingError(
        'first_block_cache',
        self.first_block_cache,
        '0, which skips none, or a share below 1',
      )
    if not 0 <= self.temperature <= 1:
      raise SettingError(
        'temperature', self.temperature, '0, no noise, to 1, as trained'
      )
    if self.temperature != 1 != self.strength:
      raise SettingError(
        'temperature',
        self.temperature,
        f'1 with `strength`={self.strength}, since an edit begins with the '
        'noise of its strength',
      )
    if self.rope_scaling not in rope.SCALINGS:
      raise SettingError(
        'rope_scaling', self.rope_scaling, f'one of {rope.SCALINGS}'
      )
    if self.boundary is not None and not 0 < self.boundary < 1:
      raise SettingError(
        'boundary', self.boundary, 'a noise level between 0 and 1'
      )
    if self.guidance_2 is None:
      return
    if self.boundary is None:
      raise SettingError(
        'guidance_2',
        self.guidance_2,
        'None, since the model has one transformer',
      )
    if not 0 <= self.guidance_2 < math.inf:
      raise SettingError('guidance_2', self.guidance_2, '0 or more')
    if self.guidance == 1 != self.guidance_2:
      raise SettingError(
        'guidance_2',
        self.guidance_2,
        '1, since `guidance` is 1, which leaves guidance out',
      )

  def with_changes(
    self, *, preset: str | None = None, **changes
  ) -> 'SamplingSettings':
    """These settings with changes, of which None changes nothing.

    Args:
      preset: a name of PRESETS, whose settings the changes may override.
      **changes: settings. Timesteps bring their number of steps with them, and
        guidance of 1 leaves guidance out of a second transformer too.

    Raises:
      SettingError: no such preset, or settings that do not fit each other.
    """
    changes = {k: v for k, v in changes.items() if v is not None}
    if preset is not None:
      steps = changes.get('steps')
      of_preset = preset_settings(preset, steps=steps)
      count = len(of_preset['timesteps'])
      if steps not in (None, count) and 'timesteps' not in changes:
        least = '1 to ' if preset == 'rcm' else ''
        raise SettingError(
          'steps', steps, f'{least}{count} with `preset`={preset}'
        )
      changes = of_preset | changes
    timesteps = _as_tuple(changes.get('timesteps'))
    if isinstance(timesteps, tuple):
      changes = {'steps': len(timesteps)} | changes
    if changes.get('guidance') == 1:
      changes = {'guidance_2': None} | changes
    return dataclasses.replace(self, **changes)

  def make_guidance(self) -> 'guidance_lib.Guidance':
    """The combination of conditional and unconditional predictions."""
    from spacetime.diffusion import guidance as guidance_lib

    return guidance_lib.Guidance(
      scale=self.guidance,
      kind=self.guidance_kind,
      interval=self.interval,
      zero_steps=self.zero_steps,
      momentum=self.momentum,
      norm_threshold=self.norm_threshold,
      eta=self.eta,
      skip_layers=self.skip_layers,
      skip_layer_scale=self.skip_layer_scale,
      skip_layer_interval=self.skip_layer_interval,
    )

  def make_schedule(self) -> 'schedules.Schedule':
    """The noise levels, without the steps that CFG-Zero* leaves out.

    Its velocity is zero there, which leaves the noise unchanged. Left out, such
    a step is no part of the history of a multistep solver either. An edit
    begins with more than noise: it keeps them.
    """
    from spacetime.diffusion import schedules

    if self.timesteps is None:
      schedule = schedules.make_schedule(
        self.schedule,
        self.steps,
        shift=self.shift,
        solver=self.solver,
        strength=self.strength,
      )
    else:
      schedule = schedules.timesteps_schedule(
        self.timesteps,
        shift=self.shift,
        schedule=self.schedule,
        strength=self.strength,
      )
    guidance = self.make_guidance()
    zero = (
      guidance.kind == 'cfg_zero' and guidance.uses_cfg and self.strength == 1
    )
    return schedule.without_first(guidance.zero_steps) if zero else schedule
