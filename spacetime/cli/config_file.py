"""The flag `--config`: its file, and keys that the file leaves out."""

import ast
import dataclasses
import difflib
import typing
from typing import Any

from spacetime.config import experiment_files


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Arguments with `--config` resolved to a file.

  Attributes:
    argv: without the overrides in `additions`.
    additions: values of keys that an experiment may have and the file leaves
      out, by dotted key.
  """

  argv: list[str]
  additions: dict[str, Any]

  def add_to(self, config) -> None:
    """Sets the additions in a ConfigDict."""
    with config.unlocked(), config.ignore_type():
      for name, value in self.additions.items():
        *sections, key = name.split('.')
        section = config
        for part in sections:
          section = section[part]
        section[key] = value


def resolve(argv: list[str]) -> Arguments:
  """Finds the file of `--config` and checks the keys of its overrides.

  Raises:
    ValueError: no such experiment or size, or an unknown key.
  """
  result, additions, config = [], {}, None
  for argument in argv:
    name, equals, value = argument.partition('=')
    name = name.lstrip('-')
    if name == 'config' and equals and value:
      config = experiment_files.load(value)
      argument = f'--config={experiment_files.find(value)}'
    elif name.removeprefix('no').startswith('config.') and config is not None:
      key = name.partition('.')[2]
      error = _unknown(config, key)
      optional = _optional(config) if error else {}
      if error and key not in optional:
        raise error
      if error:
        additions[key] = _value(value if equals else 'True', optional[key])
        continue
      if equals and _is_ours(config, key, value):
        additions[key] = _value(value, None)
        continue
    result.append(argument)
  return Arguments(result, additions)


def _unknown(config, name: str) -> ValueError | None:
  """An error that names the nearest key, if the config has no such key."""
  *sections, key = name.split('.')
  for depth, section in enumerate([*sections, key]):
    if isinstance(config, (tuple, list)):
      return None  # config_flags parses indices
    known = [str(key) for key in config] if hasattr(config, 'keys') else []
    if section not in known:
      near = difflib.get_close_matches(section, known, n=1, cutoff=0.5)
      before = ''.join(f'{part}.' for part in sections[:depth])
      hint = (
        f'did you mean --config.{before}{near[0]}?'
        if near
        else f'expected one of {known}'
        if known
        else f'{before.rstrip(".")} is a value'
      )
      return ValueError(f'--config.{name}: no such key; {hint}')
    config = config[section]
  return None


def _is_ours(config, name: str, text: str) -> bool:
  """Whether config_flags would refuse a value of a known key: it knows types
  by the value in the file, which may be None, or whole where fractions are
  possible too."""
  *sections, key = name.split('.')
  section = config
  for part in sections:
    if not hasattr(section, 'keys'):
      return False
    section = section[part]
  value = section[key] if hasattr(section, 'keys') else 0
  if value is None:
    return True
  is_integer = isinstance(_value(text, None), int)
  is_number = type(value) is int and not is_integer
  return is_number and _takes_fractions(config, name)


def _takes_fractions(config, name: str) -> bool:
  """Whether a key is a number that need not be whole."""
  section = _parsed(config)
  *sections, key = name.split('.')
  for part in sections:
    section = getattr(section, part, None)
  if not dataclasses.is_dataclass(section):
    return False
  hint = typing.get_type_hints(type(section)).get(key)
  return float in (hint, *typing.get_args(hint))


def _optional(config) -> dict[str, Any]:
  """Every key that the experiment may have, with its value."""
  from spacetime.config import describe  # here: it imports JAX

  experiment = _parsed(config)
  if experiment is None:
    return {}
  return {name: value for name, value, _ in describe.keys(experiment)}


def _parsed(config):
  """The experiment of a config; None if it is none without its overrides."""
  from spacetime.config import parse  # here: it imports JAX

  try:
    return parse.experiment(config.copy_and_resolve_references())
  except ValueError:
    return None


def _value(text: str, default) -> Any:
  """A value from its text, of the type of the default."""
  if isinstance(default, bool):
    return text.lower() in ('true', '1', 'yes')
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
  if isinstance(default, float) and isinstance(value, int):
    return float(value)
  return text if isinstance(default, str) else value
