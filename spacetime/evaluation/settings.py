"""Evaluation settings: the flags of `evaluate`. Imports no JAX."""

import dataclasses

from spacetime import SettingError

WORLDS = ('digits',)
FEATURES = ('digits', 'i3d')


def _field(default, group: str, text: str):
  return dataclasses.field(
    default=default, metadata={'help': text, 'group': group}
  )


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
  """Settings of an evaluation, None where the checkpoint decides.

  Raises:
    SettingError: a value that cannot work.
  """

  checkpoint: str = _field(
    'digits',
    'input',
    'Model or autoencoder: a bundled name, a run or a weights folder, such as '
    'runs/digits.',
  )
  world: str = _field(
    'digits', 'input', 'World whose scenes the model was trained on.'
  )
  features: str = _field(
    'digits',
    'input',
    'Features in which sampled and real clips are compared: digits, of a small '
    'network for this world, or i3d, as in FVD (extra fvd).',
  )
  frames: int | None = _field(
    None,
    'length',
    "Frames of a clip, such as 33; the default is the checkpoint's.",
  )
  size: str | None = _field(
    None,
    'length',
    "WIDTHxHEIGHT in pixels, such as 96x48; the default is the checkpoint's.",
  )
  num: int = _field(256, 'solver', 'Videos to sample and measure, such as 256.')
  seed: int = _field(0, 'solver', 'Random seed of scenes and noise, such as 1.')
  steps: int | None = _field(
    None,
    'solver',
    "Solver steps, such as 20; the default is the checkpoint's.",
  )
  solver: str | None = _field(
    None,
    'solver',
    'Solver: euler, heun, dpm, unipc or renoise; the default is the '
    "checkpoint's.",
  )
  temperature: float | None = _field(
    None,
    'solver',
    'Standard deviation of the initial noise, such as 0.6; the default is the '
    "checkpoint's.",
  )
  guidance: float | None = _field(
    None,
    'guidance',
    "Guidance scale, such as 2; the default is the checkpoint's.",
  )
  batch_size: int = _field(
    16, 'memory', 'Videos that are sampled at once, such as 4.'
  )
  out: str = _field(
    'evaluation',
    'output',
    'Folder of metrics.json, sheet.png and chart.png, such as runs/evaluation.',
  )
  overwrite: bool = _field(
    False, 'output', 'Replace the evaluation that `out` holds.'
  )

  def __post_init__(self):
    if self.world not in WORLDS:
      raise SettingError('world', self.world, f'one of {", ".join(WORLDS)}')
    if self.features not in FEATURES:
      raise SettingError(
        'features', self.features, f'one of {", ".join(FEATURES)}'
      )
    if not self.out:
      raise SettingError('out', self.out, 'a folder for the results')
    for name, least in (('num', 2), ('batch_size', 1), ('seed', 0)):
      if getattr(self, name) < least:
        raise SettingError(name, getattr(self, name), f'{least} or more')

  @property
  def sampling(self) -> dict:
    """The settings of the sampler that are set."""
    names = ('steps', 'solver', 'guidance', 'temperature')
    values = {name: getattr(self, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
