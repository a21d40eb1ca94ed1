"""The file behind `--config`: where it lies, and keys that it does not have."""

import difflib
import importlib.util
import pathlib
import sys

import spacetime

# Of the checkout, or of an installed wheel.
ROOT = pathlib.Path(spacetime.__file__).parents[1]
FOLDER = 'experiments'


def checked(argv: list[str]) -> list[str]:
  """Arguments with the path of the config's file; its overrides are keys.

  Raises:
    ValueError: no such experiment or size, or a key that it does not have.
  """
  result, config = [], None
  for argument in argv:
    name, equals, value = argument.partition('=')
    name = name.lstrip('-')
    if name == 'config' and equals and value:
      value = resolve(value)
      config, argument = load(value), f'--config={value}'
    elif name.removeprefix('no').startswith('config.') and config is not None:
      _check_key(config, name.partition('.')[2])
    result.append(argument)
  return result


def resolve(value: str) -> str:
  """`digits:cpu` or `experiments/digits.py:cpu` -> PATH:cpu.

  Raises:
    ValueError: there is no such file.
  """
  name, colon, size = value.partition(':')
  given = pathlib.Path(name)
  paths = [given, ROOT / given]
  if given.suffix != '.py' and given.name == name:
    paths = [base / FOLDER / f'{name}.py' for base in (pathlib.Path(), ROOT)]
  for path in paths:
    if path.is_file():
      return f'{path}{colon}{size}'
  known = [path.stem for path in sorted((ROOT / FOLDER).glob('*.py'))]
  near = difflib.get_close_matches(given.stem, known, n=1)
  hint = f'did you mean {near[0]}?' if near else f'expected one of {known}'
  raise ValueError(f'--config={value}: no such file; {hint}')


def load(value: str):
  """The config of a resolved path, as its get_config returns it."""
  name, *size = value.split(':', 1)
  path = pathlib.Path(name).absolute()
  if path.parent.name == FOLDER and str(path.parents[1]) not in sys.path:
    sys.path.insert(0, str(path.parents[1]))  # experiments share modules
  spec = importlib.util.spec_from_file_location(f'{path.stem}_config', path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return module.get_config(*size)
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(f'--config={value}: {e}') from e
  except (SyntaxError, ImportError) as e:
    raise ValueError(f'--config={value}: cannot be read: {e}') from e


def _check_key(config, name: str) -> None:
  *sections, key = name.split('.')
  for depth, section in enumerate([*sections, key]):
    if isinstance(config, (tuple, list)):
      return  # config_flags parses indices
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
      raise ValueError(f'--config.{name}: no such key; {hint}')
    config = config[section]
