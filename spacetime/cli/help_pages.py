"""Help of a command: its docstring, then all of its flags in groups."""

import shutil
import sys
import textwrap

from absl import flags

from spacetime.cli import flag_names
from spacetime.pipeline import aliases

WORDS = ('-h', '-help', '--help', '--helpfull', '--helpshort')
GROUPS = (
  *('input', 'scenes', 'length', 'solver', 'guidance', 'memory', 'output'),
  *('options', 'devices'),
)
# Groups of flags that no dataclass defines.
_GROUP = {
  **dict.fromkeys(
    (
      *('checkpoint', 'config', 'data', 'source', 'base', 'world', 'seed'),
      *('endpoint', 'model', 'text', 'transformer', 'variant', 'topology'),
      *('num_slices', 'program', 'num'),
    ),
    'input',
  ),
  **dict.fromkeys(('frames', 'height', 'width', 'size', 'fps'), 'length'),
  **dict.fromkeys(('steps', 'solver', 'temperature'), 'solver'),
  'guidance': 'guidance',
  **dict.fromkeys(('batch_size', 'shard', 'shard_gb'), 'memory'),
  **dict.fromkeys(
    (
      *('out', 'workdir', 'target', 'dtype', 'lora', 'json', 'hlo'),
      *('overwrite', 'profile', 'print_config'),
    ),
    'output',
  ),
  **dict.fromkeys(('coordinator', 'num_processes', 'process_id'), 'devices'),
}
_UNSET = {}
_EXAMPLES = {}
_METAVARS = {'int': 'N', 'float': 'X', 'string': 'TEXT', 'numbers': 'X,X'}


def group(name: str, *flag_names: str) -> None:
  """Puts flags into a group of the help."""
  _GROUP.update(dict.fromkeys(flag_names, name))


def unset(flag: str, source: str) -> None:
  """Says where a flag that is not set takes its value from."""
  _UNSET[flag] = source


def example(flag: str, value: str) -> None:
  """Gives a flag an example."""
  _EXAMPLES[flag] = f'"{value}"' if ' ' in value else value


def requested(arguments: list[str]) -> bool:
  """Whether help was requested; not by what stands behind `--`."""
  if '--' in arguments:
    arguments = arguments[: arguments.index('--')]
  return arguments[:1] == ['help'] or any(word in arguments for word in WORDS)


def page(docstring: str, groups: tuple[str, ...] = GROUPS) -> str:
  """The help of a command, with its defined flags."""
  width = min(shutil.get_terminal_size((80, 24)).columns, 100)
  lines = [docstring.strip(), '']
  flags_by_group = {}
  for name, flag in flag_names.visible().items():
    flags_by_group.setdefault(_GROUP.get(name, 'options'), []).append(flag)
  order = [*groups, *(g for g in flags_by_group if g not in groups)]
  for name in order:
    if name not in flags_by_group:
      continue
    lines.append(f'{name}:')
    for flag in flags_by_group[name]:
      lines += _entry(flag, width)
    lines.append('')
  if 'config' in flags.FLAGS:
    lines += [
      'Any key of the config can be set: --config.KEY=VALUE, such as',
      '--config.train.steps=100.',
      '',
    ]
  return '\n'.join(lines).rstrip() + '\n'


def show(docstring: str, groups: tuple[str, ...] = GROUPS) -> None:
  """Prints the help of a command and exits with 0."""
  sys.stdout.write(page(docstring, groups))
  sys.exit(0)


def _is_empty(default) -> bool:
  return default is None or default is False or default == ''


def _entry(flag: flags.Flag, width: int) -> list[str]:
  kind = flag.flag_type()
  values = getattr(flag.parser, 'enum_values', None)
  if flag.boolean:
    head = f'  --[no]{flag.name}'
  else:
    metavar = '|'.join(values) if values else _METAVARS.get(kind, 'TEXT')
    head = f'  --{flag.name}={metavar}'
  text = ' '.join((flag.help or '').split())
  if values:
    text = text.removeprefix(f'<{"|".join(values)}>: ')
  text = flag_names.with_flags(text)
  if flag.name in _EXAMPLES:
    text += f' Example: --{flag.name}={_EXAMPLES[flag.name]}.'
  if flag.name in _UNSET:
    text += f' Default: {_UNSET[flag.name]}.'
  elif not _is_empty(flag.default) and 'efault' not in text:
    text += f' Default: {flag.default}.'
  also = [a for a, own in aliases.ALIASES.items() if own == flag.name]
  if flag.name == 'size':
    also = ['width and --height']
  if also:
    text += f' Also: --{", --".join(also)}.'
  body = textwrap.wrap(
    text, width - 6, break_on_hyphens=False, break_long_words=False
  )
  return [head, *('      ' + line for line in body)]
