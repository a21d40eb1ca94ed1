"""Finds and loads experiments: Python files with a function get_config."""

import difflib
import importlib.util
import pathlib
import sys
import types

import ml_collections

import spacetime
from spacetime import SettingError

PACKAGE = 'experiments'
# Of the working folder, of a checkout, and of an installed wheel.
FOLDERS = (
  pathlib.Path(PACKAGE),
  pathlib.Path(spacetime.__file__).parents[1] / PACKAGE,
  pathlib.Path(spacetime.__file__).parent / PACKAGE,
)


def find(name: str) -> str:
  """The file of an experiment, with its argument.

  Args:
    name: `digits:cpu`, or a file such as `experiments/digits.py:cpu`.

  Returns:
    PATH:ARGUMENT, or PATH where the name has no argument.

  Raises:
    SettingError: there is no such file.
  """
  stem, colon, argument = name.partition(':')
  path = pathlib.Path(stem)
  paths = [path, FOLDERS[1].parent / path]
  if path.suffix != '.py' and path.name == stem:
    paths = [folder / f'{stem}.py' for folder in FOLDERS]
  for candidate in paths:
    if candidate.is_file():
      return f'{candidate}{colon}{argument}'
  known = sorted({p.stem for folder in FOLDERS for p in folder.glob('*.py')})
  near = difflib.get_close_matches(path.stem, known, n=1)
  raise SettingError(
    'config',
    name,
    f'a file with get_config, or one of {known}',
    hint=f'did you mean {near[0]}?' if near else '',
  )


def load(name: str) -> ml_collections.ConfigDict:
  """The config of an experiment.

  Args:
    name: see find.

  Raises:
    ValueError: there is no such file, it cannot be imported, or it has no such
      argument.
  """
  file, *arguments = find(name).split(':', 1)
  path = pathlib.Path(file).absolute()
  if path.suffix != '.py':
    raise SettingError('config', name, 'a Python file with get_config')
  _make_importable(path.parent)
  spec = importlib.util.spec_from_file_location(f'{path.stem}_config', path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return module.get_config(*arguments)
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    hint = _near_argument(module, *arguments)
    raise ValueError(f'{name}: {e}; {hint or "change `config`"}') from e
  except (SyntaxError, ImportError) as e:
    raise ValueError(f'{name} cannot be imported: {e}; change `config`') from e


def _near_argument(module: types.ModuleType, argument: str = '') -> str:
  """A hint at the nearest argument of an experiment that lists them, by a
  function `names` or a mapping `SIZES`; '' if there is none, or it is known."""
  listed = getattr(module, 'names', None)
  known = [*listed()] if listed else [*getattr(module, 'SIZES', ())]
  if not known or not argument or argument in known:
    return ''
  near = difflib.get_close_matches(argument, known, n=1, cutoff=0.0)
  return f'did you mean {near[0]}?'


def _make_importable(folder: pathlib.Path) -> None:
  """Lets the experiments of a folder import each other, wherever it is."""
  if folder.name != PACKAGE:
    return
  package = sys.modules.setdefault(PACKAGE, types.ModuleType(PACKAGE))
  paths = list(getattr(package, '__path__', []))
  if str(folder) not in paths:
    package.__path__ = [*paths, str(folder)]
