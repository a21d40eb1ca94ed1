"""Every key of an experiment with its value and its meaning."""

import dataclasses
import inspect
import pprint
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from spacetime.config import parse
from spacetime.config.experiment import Experiment

# Sections within sections whose keys are those of the outer one in a config.
_MERGED = {('autoencoder', 'network'), ('text', 'encoder')}
# Fields that other sections determine.
_DERIVED = {
  *('model.channels', 'model.text_width'),
  *(f'data.world.{name}' for name in parse.CLIP_SIZES),
}


def describe(experiment: Experiment, *, width: int = 80) -> str:
  """One line for each key and value, its meaning below."""
  lines = []
  for key, value, meaning in keys(experiment):
    text = pprint.pformat(value, width=width - 2, compact=True)
    if '\n' in text:  # stages: lists of dicts, below their key
      lines += [f'{key} =', textwrap.indent(text, '  ')]
    else:
      lines.append(f'{key} = {text}')
    lines += textwrap.wrap(
      meaning, width, initial_indent='    ', subsequent_indent='    '
    )
  return '\n'.join(lines)


def keys(experiment: Experiment) -> Iterator[tuple[str, Any, str]]:
  """(dotted key, value, meaning) of every key that the config has or could
  have."""
  for field in dataclasses.fields(experiment):
    value = getattr(experiment, field.name)
    if field.name in ('values', *parse.RECORDS) or value is None:
      continue
    if dataclasses.is_dataclass(value):
      for key, part, meaning in _section(field.name, value):
        if key == 'data.stages':  # as the config writes them
          part = (experiment.values.get('data') or {}).get('stages') or ()
        yield key, part, meaning
    else:
      yield field.name, value, meanings(Experiment)[field.name]


def _section(name: str, section) -> Iterator[tuple[str, Any, str]]:
  meaning = meanings(type(section))
  for field in dataclasses.fields(section):
    key, value = f'{name}.{field.name}', getattr(section, field.name)
    if key in _DERIVED:
      continue
    if (name, field.name) in _MERGED:
      if value is not None:
        yield from _section(name, value)
    elif dataclasses.is_dataclass(value):
      for kind, cls in parse.PACKINGS.items():
        if isinstance(value, cls):
          yield f'{key}.kind', kind, meaning.get(field.name, '')
      yield from _section(key, value)
    else:
      yield key, value, meaning.get(field.name, '')


def meanings(cls: type) -> dict[str, str]:
  """The meaning of each field: the `help` of its metadata, or its entry in the
  docstring of the class."""
  docstring = inspect.getdoc(cls) or ''
  _, _, attributes = docstring.partition('Attributes:\n')
  attributes = re.split(r'\n\S', attributes)[0]
  entries = re.split(r'^  (?=\w[\w, ]*:)', attributes, flags=re.MULTILINE)
  result = {}
  for entry in entries:
    names, colon, text = entry.partition(':')
    for name in names.split(', ') if colon else []:
      result[name.strip()] = ' '.join(text.split())
  for field in dataclasses.fields(cls):
    if 'help' in field.metadata:
      result[field.name] = field.metadata['help']
  return result
