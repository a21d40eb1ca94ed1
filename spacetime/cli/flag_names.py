"""Names of flags: diffusers' spellings, suggestions, and settings as flags."""

import dataclasses
import difflib
import re
import sys

from absl import flags

import spacetime
from spacetime.diffusion.settings import SamplingSettings
from spacetime.pipeline import aliases

# A setting -> the flag or config key that sets it, where it is not the flag or
# the key of the same name. The first that the command has is printed.
SETTINGS = {
  'width': ('size', 'data.width'),
  'height': ('size', 'data.height'),
  'frames': ('data.frames',),
  'fps': ('data.fps',),
  'batch_size': ('data.batch_size',),
  'key': ('sign',),
  'max_unreadable': ('data.max_unreadable',),
  'changes': ('data.changes',),
  'checkpoint': ('source',),
}
# Config sections with the keys that are settings of the same name.
SECTIONS = {
  'sampling': {field.name for field in dataclasses.fields(SamplingSettings)}
}
_BACKTICKS = re.compile(r'`([A-Za-z_][\w.]*)`')


def spelled(name: str) -> str:
  """The flag of a setting, such as `--steps`; the name if it has none."""
  return _flag(name) or name


def message(error: ValueError | spacetime.SettingWarning) -> str:
  """An error or a warning in one line, its settings spelled as flags."""
  if isinstance(error, spacetime.SettingWarning):
    text = f'{_assigned(error.name, error.value)}: {error.reason}'
  elif isinstance(error, spacetime.SettingError):
    text = f'{_assigned(error.name, error.value)}: expected {error.expected}'
    text += f'; {error.hint}' if error.hint else ''
  else:
    text = str(error)
  text = with_flags(text)
  return ' '.join(line.strip() for line in text.splitlines() if line.strip())


def _assigned(name: str, value) -> str:
  """`--steps=0` of a setting and its value."""
  text = spelled(name)
  if value is not None:
    value = value if isinstance(value, str) else repr(value)
    text += f'={value}' if value else "=''"
  return text


def with_flags(text: str) -> str:
  """A text whose backticked settings are spelled as flags."""
  return _BACKTICKS.sub(lambda match: _flag(match[1]) or match[0], text)


def own_names(argv: list[str]) -> list[str]:
  """Arguments with diffusers' flags replaced by those of the command.

  Raises:
    ValueError: a flag that the command does not have, with the nearest one.
  """
  result, sides, rest = [], {}, iter(argv)
  for argument in rest:
    if argument == '--':
      return [*result, *_size(sides), argument, *rest]
    if not re.match(r'--?[A-Za-z]', argument):
      result.append(argument)
      continue
    name, equals, value = argument.lstrip('-').partition('=')
    own = aliases.ALIASES.get(name)
    if name in flags.FLAGS or own not in flags.FLAGS:
      own = name
    side = name in aliases.SIZE and name not in flags.FLAGS
    if side and 'size' in flags.FLAGS:
      sides[name] = value if equals else next(rest, '')
      continue
    if not _is_flag(own):
      raise ValueError(f'unknown flag --{name}{_suggestion(name)}')
    if not equals and own in flags.FLAGS and not flags.FLAGS[own].boolean:
      equals, value = '=', next(rest, None)
      if value is None:
        raise ValueError(f'--{name}: expected a value, as --{name}=VALUE')
    result.append(f'--{own}{equals}{value}')
  return [*result, *_size(sides)]


def config_keys(argv: list[str]) -> list[str]:
  """Config keys that arguments set, such as `train.steps`."""
  keys = (re.match(r'--?config\.([\w.]+)', argument) for argument in argv)
  return list(dict.fromkeys(key[1] for key in keys if key))


def _size(sides: dict[str, str]) -> list[str]:
  if not sides:
    return []
  for name in aliases.SIZE:
    if name not in sides:
      (other,) = sides
      raise ValueError(f'--{other}={sides[other]}: expected --{name} too')
  return ['--size=' + 'x'.join(sides[name] for name in aliases.SIZE)]


def _is_flag(name: str) -> bool:
  if name in flags.FLAGS:
    return True
  if name.startswith('no') and name[2:] in flags.FLAGS:
    return flags.FLAGS[name[2:]].boolean
  return 'config' in flags.FLAGS and bool(re.match(r'(no)?config\.', name))


def _suggestion(name: str) -> str:
  """The nearest flag, by its own name or by diffusers'."""
  plain = name.replace('-', '_').lower()
  known = {flag: flag for flag in visible()}
  known |= {a: own for a, own in aliases.ALIASES.items() if own in known}
  near = difflib.get_close_matches(plain, known, n=1, cutoff=0.6)
  near = near or [flag for flag in known if flag.startswith(plain)][:1]
  near = near or [flag for flag in known if plain.startswith(flag + '_')][:1]
  if not near:
    return '; see --help'
  own = known[near[0]]
  also = f' (also spelled --{near[0]})' if own != near[0] else ''
  return f'; did you mean --{own}{also}?'


def visible() -> dict[str, flags.Flag]:
  """The command's own and shared flags by name, without those of libraries."""
  own = ('spacetime', 'launch', '__main__')
  result = {}
  for module, entries in flags.FLAGS.flags_by_module_dict().items():
    if module.split('.')[0] in own or module == sys.argv[0]:
      result |= {flag.name: flag for flag in entries}
  return {
    name: flag
    for name, flag in result.items()
    if not name.startswith('config.') and name in flags.FLAGS
  }


def _flag(name: str) -> str | None:
  known = flags.FLAGS
  if name in known:
    return f'--{name}'
  for other in SETTINGS.get(name, ()):
    if other in known:
      return f'--{other}'
    if '.' in other and 'config' in known:
      return f'--config.{other}'
  if 'config' not in known:
    return None
  if '.' in name:
    return f'--config.{name}' if _is_key(name) else None
  for section, keys in SECTIONS.items():
    if name in keys and _is_key(f'{section}.{name}'):
      return f'--config.{section}.{name}'
  return f'--config.{name}' if _is_key(name) else None


def _is_key(name: str) -> bool:
  """Whether the command's config has such a key, its missing ones included."""
  config = flags.FLAGS['config'].value
  if config is None:
    return False
  *sections, key = name.split('.')
  for section in sections:
    if section not in config:
      return False
    config = config[section]
    if not hasattr(config, 'keys'):
      return False
  return bool(sections) or key in config
