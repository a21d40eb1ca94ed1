"""Paths in a work or weights directory, and checks that they exist."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from spacetime.media import files

CONFIG, TOKENIZER = 'config.json', 'tokenizer.model'
WEIGHTS, STEPS = 'weights.safetensors', 'checkpoints'

Path = str | os.PathLike
Tree = Any


def absolute(path: Path) -> epath.Path:
  """Makes a path absolute; URLs of buckets are unchanged.

  Raises:
    ValueError: a URL that nothing installed here can read.
  """
  if files.is_url(path):
    return files.as_path(path)
  return epath.Path(os.path.abspath(os.path.expanduser(os.fspath(path))))


def check_directory(directory: Path) -> epath.Path:
  """Checks that a path is a work or weights directory and returns it."""
  path = absolute(directory)
  if not files.exists(path):
    raise ValueError(f'{directory} does not exist')
  if not path.is_dir():
    raise ValueError(
      f'{directory} is a file; expected the directory that holds it'
    )
  arrays = (path / WEIGHTS).exists() or (path / STEPS).exists()
  if not arrays or not (path / CONFIG).exists():
    raise ValueError(
      f'{directory} is not a checkpoint; expected {CONFIG} with {WEIGHTS} or '
      f'{STEPS}/'
    )
  return path


def has_step(workdir: Path) -> bool:
  """Whether the directory holds a complete checkpoint."""
  steps = absolute(workdir) / STEPS
  return steps.exists() and any(is_complete(path) for path in steps.iterdir())


def is_complete(step: epath.Path) -> bool:
  """Whether a step's folder holds a finished checkpoint."""
  import orbax.checkpoint as ocp  # here: a weights folder does without it

  return (
    step.name.isdigit()
    and ocp.utils.is_checkpoint_finalized(step)
    and (step / '_CHECKPOINT_METADATA').exists()
    and (step / 'state' / '_METADATA').exists()
  )


def find_step(directory: epath.Path, step: int | None) -> int:
  """Checks that a step is complete; None returns the last complete step.

  Raises:
    ValueError: no complete checkpoint, or none of that step.
  """
  entries = list(directory.iterdir()) if directory.exists() else []
  complete = sorted(int(p.name) for p in entries if is_complete(p))
  if not complete:
    half = f', only {len(entries)} half-written' if entries else ''
    raise ValueError(f'{directory} has no complete checkpoint{half}')
  if step is not None and step not in complete:
    raise ValueError(
      f'{directory} has no step {step}; expected one of {complete}'
    )
  return complete[-1] if step is None else step


def damaged(path: Path, error: Exception) -> ValueError:
  """Returns the error of a file or folder that cannot be read."""
  return ValueError(
    f'{path} cannot be read ({type(error).__name__}: {str(error)[:200]}); it '
    'is damaged'
  )


def write_file(path: epath.Path, data: bytes) -> None:
  """Writes a file at once: a reader sees all of it or the former one."""
  with files.atomic_write(path) as temporary:
    temporary.write_bytes(data)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[pathlib.Path]:
  """Yields a folder to fill; it becomes `target` when the block ends.

  Raises:
    ValueError: the target exists and is not an empty folder, or cannot be made.
  """
  target = files.check_local('out', target).absolute()
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise ValueError(f'{target} exists already: nothing is overwritten')
  files.check_writable(target.parent)
  with files.atomic_folder(target) as temporary:
    yield temporary
