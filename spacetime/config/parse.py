"""Parses a ConfigDict, or the mapping of a config.json, into an Experiment."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from spacetime import SettingError
from spacetime.config import sections
from spacetime.config.experiment import Experiment
from spacetime.data import packing, resolutions, stages
from spacetime.data.digits import world as world_lib
from spacetime.data.settings import DataConfig
from spacetime.diffusion.flow import FlowConfig
from spacetime.diffusion.settings import SamplingSettings
from spacetime.models import text_encoder
from spacetime.models.autoencoder import compact, identity, wan
from spacetime.models.image_encoder import ImageConfig
from spacetime.models.transformer.dit import DiTConfig
from spacetime.models.transformer.lora import LoraConfig
from spacetime.sharding import MeshConfig

# Shapes and steps are int32.
LARGEST = 2**31
PACKINGS = {'rows': packing.SequencePacking, 'buckets': packing.Buckets}
AUTOENCODERS = {
  'identity': identity.IdentityAutoencoder,
  'wan': wan.WanAutoencoderConfig,
  'compact': compact.CompactConfig,
}
# Sections whose keys are the fields of one dataclass.
SECTIONS = {
  'image': ImageConfig,
  'flow': FlowConfig,
  'conditioning': sections.FrameConditioningConfig,
  'flow_map': sections.FlowMapConfig,
  'lora': LoraConfig,
  'optimizer': sections.OptimizerConfig,
  'mesh': MeshConfig,
  'train': sections.TrainConfig,
  'sampling': SamplingSettings,
  'reconstruction': sections.ReconstructionConfig,
}
# Keys of `data` that the world has too, for its scenes.
CLIP_SIZES = ('frames', 'height', 'width', 'mixed')
# Written by runs and conversions, not by people; their keys are free.
RECORDS = ('published', 'source', 'cache')
KEYS = (
  *('stage', 'seed', 'data', 'autoencoder', 'text', 'model'),
  *SECTIONS,
  *RECORDS,
)


def experiment(config: Mapping | ml_collections.ConfigDict) -> Experiment:
  """Parses and checks a config.

  Args:
    config: an experiment's ConfigDict, or the mapping of a config.json.

  Raises:
    SettingError: an unknown key (the nearest known one is named), a missing
      one, or a value that cannot work.
  """
  values = plain(config)
  _check_known('', values, KEYS)
  for name, value in values.items():
    if name not in RECORDS:
      _check_finite(name, value)
  parsed: dict[str, Any] = {}
  if values.get('data') is not None:
    parsed['data'] = _data(values['data'])
  if values.get('autoencoder') is not None:
    parsed['autoencoder'] = _autoencoder(values['autoencoder'])
  if values.get('text') is not None:
    parsed['text'] = _text(values['text'])
  if values.get('model') is not None:
    section, text = parsed.get('autoencoder'), parsed.get('text')
    parsed['model'] = _unpack(
      values['model'],
      DiTConfig,
      'model',
      channels=section.network.z_dim if section and section.network else 0,
      text_width=text.encoder.d_model if text else 0,
    )
  for name, cls in SECTIONS.items():
    if values.get(name) is not None:
      parsed[name] = _unpack(values[name], cls, name)
  parsed |= {name: values[name] for name in RECORDS if name in values}
  return Experiment(
    stage=values.get('stage'),
    seed=values.get('seed', 0),
    values=values,
    **parsed,
  )


def _check_finite(name: str, value) -> None:
  """Refuses NaN and infinity, which comparisons of ranges may let pass."""
  if isinstance(value, Mapping):
    for key, inner in value.items():
      _check_finite(f'{name}.{key}', inner)
  elif isinstance(value, (list, tuple)):
    for inner in value:
      _check_finite(name, inner)
  elif isinstance(value, float) and not math.isfinite(value):
    raise SettingError(name, value, 'a finite number')


def replace(parsed: Experiment, changes: Mapping[str, Any]) -> Experiment:
  """An experiment with changed values, by dotted key."""
  values = plain(parsed.values)
  for name, value in changes.items():
    *path, last = name.split('.')
    section = values
    for key in path:
      section = section.setdefault(key, {})
    section[last] = value
  return experiment(values)


def plain(config) -> dict:
  """A ConfigDict as nested plain values, copied."""
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  return {
    k: plain(v) if isinstance(v, Mapping) else v for k, v in config.items()
  }


def _data(values: Mapping) -> DataConfig:
  values = dict(values)
  world = _keys(values.get('world') or {}, 'data.world')
  _check_known(
    'data.world',
    world,
    [n for n in _names(world_lib.World) if n not in CLIP_SIZES],
  )
  values['world'] = _unpack(world, world_lib.World, 'data.world')
  if values.get('mixed') is not None:
    values['mixed'] = _unpack(values['mixed'], resolutions.Sizes, 'data.mixed')
  if values.get('packing') is not None:
    section = _keys(values['packing'], 'data.packing')
    kind = section.pop('kind', None)
    if kind not in PACKINGS:
      raise SettingError('data.packing.kind', kind, f'one of {[*PACKINGS]}')
    values['packing'] = _unpack(section, PACKINGS[kind], 'data.packing')
  values['stages'] = _stages(values.get('stages') or ())
  return _unpack(values, DataConfig, 'data')


def _stages(items) -> tuple[stages.Stage, ...]:
  """The list `data.stages`: mappings, each with a list `mix` of mappings."""
  parsed = []
  for number, item in enumerate(items):
    where, values = f'data.stages[{number}]', dict(item)
    values['mix'] = tuple(
      _kind(kind, f'{where}.mix[{index}]')
      for index, kind in enumerate(values.get('mix') or ())
    )
    parsed.append(_unpack(values, stages.Stage, where))
  return tuple(parsed)


def _kind(values: Mapping, where: str) -> stages.Kind:
  values = dict(values)
  if values.get('sizes') is not None:
    values['sizes'] = _unpack(
      values['sizes'], resolutions.Sizes, f'{where}.sizes'
    )
  world = dict(values.get('world') or {})
  _check_known(
    f'{where}.world',
    world,
    [name for name in _names(world_lib.World) if name != 'mixed'],
  )
  values['world'] = tuple(
    (name, tuple(value) if isinstance(value, list) else value)
    for name, value in world.items()
  )
  return _unpack(values, stages.Kind, where)


def _autoencoder(values: Mapping) -> sections.AutoencoderSection:
  values = dict(values)
  kind = values.pop('kind', None)
  if kind == 'weights':
    return _unpack(
      {'kind': kind} | values, sections.AutoencoderSection, 'autoencoder'
    )
  if kind not in AUTOENCODERS:
    kinds = [*AUTOENCODERS, 'weights']
    raise SettingError('autoencoder.kind', kind, f'one of {kinds}')
  network = _unpack(values, AUTOENCODERS[kind], 'autoencoder')
  return sections.AutoencoderSection(kind, network=network)


def _text(values: Mapping) -> sections.TextSection:
  values = dict(values)
  own = {
    name: values.pop(name) for name in ('length', 'kind') if name in values
  }
  known = [*_names(text_encoder.TextConfig), 'length', 'kind']
  _check_known('text', values, known)
  encoder = _unpack(values, text_encoder.TextConfig, 'text')
  return _unpack(own, sections.TextSection, 'text', encoder=encoder)


def _unpack(section: Mapping, cls, where: str, **derived):
  """A section of a config as a frozen dataclass.

  Args:
    section: keys and values; lists become tuples.
    cls: the dataclass.
    where: name of the section, for messages.
    **derived: fields that other sections determine.
  """
  section = _keys(section, where)
  _check_known(where, section, [n for n in _names(cls) if n not in derived])
  values = derived | {
    k: tuple(v) if isinstance(v, list) else v for k, v in section.items()
  }
  hints = typing.get_type_hints(cls)
  for name, value in section.items():
    _check_number(f'{where}.{name}', value, hints.get(name))
    _check_range(f'{where}.{name}', value)
  for field in dataclasses.fields(cls):
    if (
      field.name not in values
      and field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    ):
      raise SettingError(
        f'{where}.{field.name}', None, 'a value: it is missing'
      )
  return cls(**values)


def _keys(section, where: str) -> dict:
  """The keys of a section, copied."""
  if not isinstance(section, Mapping):
    raise SettingError(where, section, 'a section, a dict of its keys')
  return dict(section)


def _check_number(name: str, value, hint) -> None:
  """Refuses anything but a number for a field that is one, or None."""
  is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
  kinds = {*(typing.get_args(hint) if is_union else (hint,))}
  kinds -= {types.NoneType}
  is_number = value is None or isinstance(value, (int, float))
  if kinds and kinds <= {int, float} and not is_number:
    raise SettingError(name, value, 'a number')


def _check_range(name: str, value) -> None:
  """Refuses whole numbers that no size or count can have."""
  for number in value if isinstance(value, (list, tuple)) else (value,):
    if isinstance(number, int) and abs(number) >= LARGEST:
      raise SettingError(name, value, f'whole numbers below {LARGEST:,}')


def _names(cls) -> list[str]:
  return [field.name for field in dataclasses.fields(cls)]


def _check_known(where: str, values: Mapping, known) -> None:
  for key, value in values.items():
    if key in known:
      continue
    near = difflib.get_close_matches(key, known, n=1)
    prefix = f'{where}.' if where else ''
    raise SettingError(
      f'{prefix}{key}',
      value,
      f'one of the keys {sorted(known)}',
      hint=f'did you mean {prefix}{near[0]}?' if near else '',
    )
