"""Evaluation settings: the flags of `evaluate`. Imports no JAX."""

import dataclasses

from spacetime import SettingError
from spacetime.data.digits import world as world_lib

WORLDS = ('digits',)
# Contents of scenes that can be chosen. Wandering has no score.
CONTENTS = {
  'motions': world_lib.MOTIONS,
  'sizes': tuple(world_lib.SIZES),
  'speeds': tuple(world_lib.SPEEDS),
  'cameras': world_lib.CAMERAS,
}
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
  characters: int | None = _field(
    None,
    'scenes',
    "Characters of a scene, 1 to 3; the default is the training data's.",
  )
  motions: str | None = _field(
    None,
    'scenes',
    'Motions of characters, such as left,circling; the default is the training '
    "data's.",
  )
  sizes: str | None = _field(
    None,
    'scenes',
    'Sizes of characters, such as small,large; the default is the training '
    "data's.",
  )
  speeds: str | None = _field(
    None,
    'scenes',
    "Speeds of characters, such as slow; the default is the training data's.",
  )
  cameras: str | None = _field(
    None,
    'scenes',
    "Motions of the camera, such as 'pan left,zoom in'; the default is the "
    "training data's.",
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
  skip_layers: tuple[int, ...] | None = _field(
    None,
    'guidance',
    'Layers that one more branch of guidance leaves out, such as 3; the '
    "default is the checkpoint's.",
  )
  skip_layer_scale: float | None = _field(
    None,
    'guidance',
    "Scale of skip-layer guidance, such as 1; the default is the checkpoint's.",
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

    if self.characters is not None and self.characters not in (1, 2, 3):
      raise SettingError('characters', self.characters, '1, 2 or 3')
    for name, known in CONTENTS.items():
      unknown = set(self.contents.get(name, ())) - set(known)
      if unknown:
        raise SettingError(
          name, getattr(self, name), f'names among {", ".join(known)}'
        )

  @property
  def contents(self) -> dict:
    """The fields of World for the contents that are set."""
    values = {name: getattr(self, name) for name in CONTENTS}
    fields = {
      name: tuple(part.strip() for part in value.split(','))
      for name, value in values.items()
      if value is not None
    }
    if self.characters is not None:
      fields |= dict(
        min_characters=self.characters, max_characters=self.characters
      )
    return fields

  @property
  def sampling(self) -> dict:
    """The settings of the sampler that are set."""
    names = ('steps', 'solver', 'guidance', 'temperature')
    names += 'skip_layers', 'skip_layer_scale'
    values = {name: getattr(self, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
