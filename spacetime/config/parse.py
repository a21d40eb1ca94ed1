"""From a ConfigDict to frozen dataclasses. With build.py the only reader of
one: below, everything is a dataclass that has been checked."""

import dataclasses
import difflib
from collections.abc import Mapping

import ml_collections

from spacetime.config.sections import DataConfig, SamplingConfig, TrainConfig
from spacetime.data import packing as packing_lib
from spacetime.data import resolutions
from spacetime.data.digits import world as world_lib
from spacetime.diffusion import flow

STAGES = ('diffusion', 'autoencoder')
PACKINGS = {'rows': packing_lib.SequencePacking, 'buckets': packing_lib.Buckets}
# Of the text encoder: learnt with the transformer, or of published weights.
TEXTS = ('trained', 'frozen')


def plain(config) -> dict:
  """A ConfigDict as nested plain values, as a checkpoint keeps it."""
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  return {
    k: plain(v) if isinstance(v, Mapping) else v for k, v in config.items()
  }


def unpack(section, cls, where: str, **derived):
  """A section of a config as a frozen dataclass.

  Args:
    section: a mapping; lists become tuples.
    cls: the dataclass.
    where: the section's name, for messages.
    **derived: fields that other sections determine.

  Raises:
    ValueError: an unknown key (the nearest known one is named), a missing one,
      or a value that the dataclass refuses.
  """
  fields = {f.name: f for f in dataclasses.fields(cls)}
  values = dict(derived)
  for key, value in dict(section).items():
    if key not in fields or key in derived:
      known = sorted(set(fields) - set(derived))
      near = difflib.get_close_matches(key, known, n=1)
      hint = f'; did you mean {where}.{near[0]}?' if near else ''
      raise ValueError(f'{where}.{key}: unknown; known are {known}{hint}')
    values[key] = tuple(value) if isinstance(value, list) else value
  missing = [
    name
    for name, f in fields.items()
    if name not in values and f.default is dataclasses.MISSING
  ]
  if missing:
    raise ValueError(f'{where}: expected {missing} too')
  return cls(**values)


def section(config, name: str) -> dict:
  """A section by name.

  Raises:
    ValueError: the config has none.
  """
  if name not in config:
    raise ValueError(f'config has no {name!r}; it has {sorted(config)}')
  return dict(config[name])


def data(config) -> DataConfig:
  """The `data` section."""
  values = section(config, 'data')
  world = section(values, 'world')
  if world.get('mixed') is not None:
    world['mixed'] = unpack(
      world['mixed'], resolutions.Sizes, 'data.world.mixed'
    )
  values['world'] = unpack(world, world_lib.World, 'data.world')
  if values.get('packing') is not None:
    packing = dict(values['packing'])
    kind = packing.pop('kind', None)
    if kind not in PACKINGS:
      raise ValueError(
        f'data.packing.kind={kind!r}: expected one of {[*PACKINGS]}'
      )
    values['packing'] = unpack(packing, PACKINGS[kind], 'data.packing')
  return unpack(values, DataConfig, 'data')


def train(config) -> TrainConfig:
  """The `train` section."""
  return unpack(section(config, 'train'), TrainConfig, 'train')


def sampling(config, **changes) -> SamplingConfig:
  """The `sampling` section with changes, of which None changes nothing."""
  values = section(config, 'sampling')
  values |= {k: v for k, v in changes.items() if v is not None}
  return unpack(values, SamplingConfig, 'sampling')


def flow_config(config) -> flow.FlowConfig:
  """The `flow` section."""
  return unpack(section(config, 'flow'), flow.FlowConfig, 'flow')
