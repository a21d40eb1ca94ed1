"""Paths of this machine and of buckets, and atomic writes.

A path that a user names is a path of this machine or a URL such as
gs://BUCKET/NAME. pathlib would make gs:/BUCKET/NAME of the second, so that
every such path goes through `as_path`, `local_copy` or `check_local`.

Files and folders appear complete or not at all. It stands on the ground floor
because every room that reads or writes imports it: media, data, checkpoint,
pipeline, training.
"""

import contextlib
import errno
import functools
import importlib.util
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from spacetime import SettingError

# Copies of folders and files in buckets.
BUCKETS = pathlib.Path('~/.cache/spacetime/buckets')
# Errors of a path itself, which no second attempt changes.
UNUSABLE = errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR
# What reads URLs of a scheme, and the extra that brings it.
_BACKENDS = {'gs': ('gcsfs', "pip install 'spacetime-video[gcs]'")}


def is_url(path) -> bool:
  """Whether a path is a URL and not a path of this machine."""
  return '://' in os.fspath(path)


def with_home(path) -> pathlib.Path:
  """A path of this machine with the home folder in place of `~`.

  `~name` of no user is the name itself, as in a shell.
  """
  return pathlib.Path(os.path.expanduser(path))


def as_path(path):
  """A pathlib.Path of this machine, or an epath.Path of a URL.

  Args:
    path: a str, a pathlib.Path or an epath.Path; `~` is the home folder.

  Raises:
    ValueError: a URL that nothing installed here can read.
  """
  if not is_url(path):
    return with_home(path)
  from etils import epath

  text = os.fspath(path)
  scheme = text.partition('://')[0]
  try:
    opened = epath.Path(text)
  except (ValueError, KeyError) as e:  # a scheme that it does not know
    raise ValueError(
      f'{text}: expected gs://BUCKET/NAME, or a path of this machine'
    ) from e
  module, command = _BACKENDS.get(scheme, ('fsspec', 'pip install fsspec'))
  if importlib.util.find_spec(module) is None:
    raise ValueError(
      f'{text}: {scheme}:// needs {module}, which is not installed: {command}'
    )
  return opened


def local_copy(path) -> pathlib.Path:
  """A file of this machine with the contents of a path.

  A file of a URL is copied into a temporary folder, once for a process; it is
  for files that a library reads by their name.

  Raises:
    ValueError: a URL that cannot be read; paths of this machine are not
      checked.
  """
  path = as_path(path)
  if not is_url(path):
    return path
  return _copied(os.fspath(path))


@functools.cache
def _copied(url: str) -> pathlib.Path:
  source = as_path(url)
  if not exists(source) or source.is_dir():
    raise ValueError(f'{url}: no such file')
  folder = pathlib.Path(tempfile.mkdtemp(dir=_temporary().name))
  target = folder / source.name
  copy(source, target)
  return target


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
  """A folder that is removed when the process ends."""
  return tempfile.TemporaryDirectory(prefix='spacetime_')


def check_file(path) -> None:
  """Refuses a path of this machine where there is no file.

  Raises:
    ValueError: nothing is there, or a folder.
  """
  if not os.path.isfile(path):
    what = (
      'a folder: expected a file' if os.path.isdir(path) else 'no such file'
    )
    raise ValueError(f'{os.fspath(path)}: {what}')


def mirror(path) -> pathlib.Path:
  """A file or folder of this machine with the contents of a path.

  That of a URL is copied to BUCKETS, where it stays for later processes; files
  of the same size that have not changed since are not copied again.

  Raises:
    ValueError: a URL that cannot be read, or holds nothing.
  """
  path = as_path(path)
  if not is_url(path):
    return path
  scheme, _, rest = os.fspath(path).partition('://')
  target = with_home(BUCKETS) / scheme / rest.strip('/')
  if not exists(path):
    raise ValueError(f'{os.fspath(path)}: no such file or folder')
  for source, name in _files_below(path, ''):
    local = target / name if name else target
    fresh = local.is_file() and size(local) == size(source)
    if not fresh or local.stat().st_mtime < changed(source):
      with atomic_write(local) as temporary:
        copy(source, temporary)
  return target


def _files_below(path, name: str) -> Iterator[tuple]:
  """(file, its name below the first path) of a file or a folder."""
  if not path.is_dir():
    yield path, name
    return
  for inside in path.iterdir():
    if inside.name:
      yield from _files_below(inside, f'{name}/{inside.name}'.strip('/'))


def check_local(name: str, path) -> pathlib.Path:
  """Checks that a path is one of this machine and returns it.

  Args:
    name: the setting that names it.
    path: the path.

  Raises:
    SettingError: a URL.
  """
  if is_url(path):
    raise SettingError(
      name,
      os.fspath(path),
      'a path of this machine',
      hint='copy the result to the bucket afterwards',
    )
  return with_home(path)


def exists(path) -> bool:
  """Whether a file or folder is there; a URL that cannot be read raises.

  Raises:
    ValueError: no access to the bucket, or no such bucket.
  """
  if not is_url(path):
    return path.exists()
  try:
    return path.exists()
  except Exception as e:  # of the library of the scheme, each its own
    reason = str(e).strip().partition('\n')[0][:200]
    raise ValueError(
      f'{os.fspath(path)} cannot be read ({type(e).__name__}: {reason})'
    ) from e


def size(path) -> int:
  """Bytes of a file."""
  stat = path.stat()
  return stat.length if is_url(path) else stat.st_size


def changed(path) -> int:
  """Time at which a file was changed last: nanoseconds, or seconds of a URL."""
  stat = path.stat()
  return int(stat.mtime or 0) if is_url(path) else stat.st_mtime_ns


def copy_folder(source, target: pathlib.Path) -> None:
  """Copies the files of a folder, without subfolders, into a new one."""
  target.mkdir(parents=True)
  for path in source.iterdir():
    if path.name and not path.is_dir():
      copy(path, target / path.name)


def copy(source, target) -> None:
  """Copies a file, 16 MiB at a time; either may be in a bucket."""
  with source.open('rb') as reader, target.open('wb') as writer:
    shutil.copyfileobj(reader, writer, 16 * 2**20)


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
  path = as_path(path) if isinstance(path, str) else path
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
  path = as_path(path) if isinstance(path, str) else path
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
  if is_url(folder):
    return
  path = with_home(folder).absolute()
  reason = _unusable(path)
  # Links that lead nowhere are there, and no folder.
  while not os.path.lexists(path) and path != path.parent:
    path = path.parent
  if reason is None and not path.is_dir():
    reason = errno.ENOTDIR
  elif reason is None and not (
    path.stat().st_mode & 0o222 and os.access(path, os.W_OK)
  ):
    # The bits as well, since root may write everywhere but in /proc.
    reason = errno.EACCES
  if reason is not None:
    raise ValueError(f'{folder} cannot be written ({os.strerror(reason)})')


def _unusable(path: pathlib.Path) -> int | None:
  """Why no file can have this path, as an error number of UNUSABLE."""
  try:
    path.lstat()
  except OSError as e:
    return e.errno if e.errno in UNUSABLE else None
  return None


def _remove(folder) -> None:
  """Removes a folder with its contents, if it exists."""
  if hasattr(folder, 'rmtree'):  # epath
    folder.rmtree(missing_ok=True)
  else:
    shutil.rmtree(folder, ignore_errors=True)
