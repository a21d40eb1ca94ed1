"""Every setting that an error names has a flag or a key, where it is raised."""

import dataclasses
import functools

import pytest
from absl import flags

from experiments import digits_pixels
from spacetime import SettingError
from spacetime import __main__ as spacetime_main
from spacetime.cli import flag_names
from spacetime.config import parse, sections
from spacetime.data import resolutions, stages
from spacetime.data.digits import world
from spacetime.data.settings import DataConfig
from spacetime.models import text_encoder
from spacetime.models.transformer import dit
from spacetime.serving import fields
from tests.helpers import commands, source_names

CONFIGURED = ('train', 'encode', 'compile')  # commands with --config
# Keys of a config's sections.
KEYS = {
  **{name: [cls] for name, cls in parse.SECTIONS.items()},
  'data': [DataConfig],
  'data.world': [world.World],
  'data.mixed': [resolutions.Sizes],
  'data.packing': [*parse.PACKINGS.values()],
  'data.stages': [stages.Stage],  # a list
  'data.stages.mix': [stages.Kind],  # a list
  'autoencoder': [sections.AutoencoderSection, *parse.AUTOENCODERS.values()],
  'text': [sections.TextSection, text_encoder.TextConfig],
  'model': [dit.DiTConfig],
}
EXTRA = {'data.packing.kind', 'autoencoder.kind'}


def is_key(name):
  if name in parse.KEYS or name in EXTRA or name in KEYS:
    return True
  section, _, key = name.rpartition('.')
  fields = [f.name for cls in KEYS.get(section, ()) for f in _fields(cls)]
  return key in fields


def _fields(cls):
  return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


@functools.cache
def names(command):
  """Flags of a command."""
  commands.load(command)
  return frozenset(flag_names.visible())


def exists(name, command):
  """Whether the command has a flag or a config key for a setting."""
  options = [name, *flag_names.SETTINGS.get(name, ())]
  if any(option in names(command) for option in options):
    return True
  if command not in CONFIGURED:
    return False
  options += [f'{section}.{name}' for section in flag_names.SECTIONS]
  return any(is_key(option) for option in options)


@functools.cache
def raised_by():
  """Modules -> commands that import them."""
  result = {}
  for command in spacetime_main.COMMANDS:
    roots = (f'spacetime.cli.{command}', 'spacetime.cli.common')
    for root in (*roots, 'spacetime.cli.devices'):
      for module in source_names.reachable(root):
        result.setdefault(module, set()).add(command)
  return result


@pytest.mark.slow
def test_every_setting_in_a_message_has_a_flag_or_a_key():
  mentions = source_names.mentions()
  assert len(mentions) > 40
  offenders = []
  for mention in mentions:
    candidates = raised_by().get(mention.module, ())
    if not candidates or mention.module.startswith('spacetime.data.'):
      candidates = spacetime_main.COMMANDS  # imported by a computed name
    if mention.prefix:
      good = mention.name.rstrip('.') in (*KEYS, '')
    else:
      good = any(exists(mention.name, command) for command in candidates)
    if mention.module.startswith('spacetime.serving.'):
      # A client reads it: settings are fields of its request there.
      good = good or mention.name in (*fields.OWN, *fields.OPENAI)
    if not good:
      offenders.append(
        f'{mention.module}:{mention.line}: {mention.name} has no flag or key '
        f'in {", ".join(candidates)}'
      )
  assert not offenders, '\n'.join(offenders)


def test_no_message_of_the_library_spells_a_flag():
  offenders = source_names.spelled_flags()
  assert not offenders, '\n'.join(offenders)


@pytest.mark.parametrize(
  ('command', 'error', 'message'),
  [
    (
      'export',
      SettingError('out', 'x', 'a new folder', hint='change `checkpoint`'),
      '--out=x: expected a new folder; change --checkpoint',
    ),
    ('export', SettingError('steps', 0, '1'), 'steps=0: expected 1'),
    (
      'export',
      SettingError('out', None, 'a folder'),
      '--out: expected a folder',
    ),
    ('export', ValueError('a\n  b `c`'), 'a b `c`'),
    (
      'convert',
      SettingError('vae', None, 'a file', hint='or set `checkpoint`'),
      '--vae: expected a file; or set --source',
    ),
    ('train', ValueError('a file for `lora`'), 'a file for `lora`'),
    (
      'train',
      SettingError('steps', 0, '1 or more'),
      '--config.sampling.steps=0: expected 1 or more',
    ),
    (
      'train',
      SettingError('train.accumulate', 3, 'a divisor of `data.batch_size`'),
      '--config.train.accumulate=3: expected a divisor of '
      '--config.data.batch_size',
    ),
    (
      'train',
      SettingError('width', 3, 'a multiple of 16'),
      '--config.data.width=3: expected a multiple of 16',
    ),
  ],
)
def test_settings_are_spelled_as_flags(command, error, message):
  commands.load(command)
  if command == 'train':
    flags.FLAGS['config'].value = digits_pixels.get_config('tiny')
  assert flag_names.message(error) == message
