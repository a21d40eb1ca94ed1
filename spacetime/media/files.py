"""Atomic writes: files and folders appear complete or not at all.

It stands on the ground floor because every room that writes imports it: media,
data, checkpoint, pipeline, training. Paths are pathlib's, or etils' epath where
they may name a bucket; nothing here imports either library's backends.
"""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator


def temporary_path(path):
  """A hidden name beside `path`, of this process.

  The suffix stays, since it names the format to encoders.
  """
  return path.with_name(f'.{path.stem}.{os.getpid()}.tmp{path.suffix}')


@contextlib.contextmanager
def atomic_write(path) -> Iterator:
  """Yields a temporary path to write; it replaces `path` when the block ends.

  The parent folder is created. If the block raises, the temporary file is
  removed and `path` is unchanged.

  Args:
    path: a str, a pathlib.Path, or an epath.Path (of a bucket too).
  """
  path = pathlib.Path(path) if isinstance(path, str) else path
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = temporary_path(path)
  try:
    yield temporary
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path, *, replace: bool = False) -> Iterator:
  """Yields a temporary folder to fill; it becomes `path` when the block ends.

  Args:
    path: path of the folder; absent or an empty folder unless `replace`.
    replace: removes the folder that is at `path` first.

  Raises:
    OSError: `path` is there, or cannot be made.
  """
  path = pathlib.Path(path) if isinstance(path, str) else path
  temporary = temporary_path(path)
  _remove(temporary)
  temporary.mkdir(parents=True)
  try:
    yield temporary
    if replace:
      _remove(path)
    temporary.replace(path)
  finally:
    _remove(temporary)


def check_writable(folder: str | os.PathLike) -> None:
  """Checks that files can be created in a folder, without creating any.

  The folder, or the nearest one above it that exists, must allow writing. A
  bucket's permissions are seen only when it is written to.

  Raises:
    ValueError: the folder cannot be written, with the reason.
  """
  if '://' in os.fspath(folder):
    return
  path = pathlib.Path(folder).expanduser().absolute()
  while not path.exists() and path != path.parent:
    path = path.parent
  reason = None
  if not path.is_dir():
    reason = errno.ENOTDIR
  elif not (path.stat().st_mode & 0o222 and os.access(path, os.W_OK)):
    # The bits as well, since root may write everywhere but in /proc.
    reason = errno.EACCES
  if reason is not None:
    raise ValueError(f'{folder} cannot be written ({os.strerror(reason)})')


def _remove(folder) -> None:
  """Removes a folder with its contents, if it exists."""
  if hasattr(folder, 'rmtree'):  # epath
    folder.rmtree(missing_ok=True)
  else:
    shutil.rmtree(folder, ignore_errors=True)
