"""Compiled programs on disk, made ahead of time for the chips that run them.

A folder holds one file for each program and `programs.json`, which says for
which chips, mesh, versions and flags they were compiled. A program is found by
a hash of its lowered text: one of another model, shape or setting is never
taken for it. The files are code: load those of your own alone.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
import warnings
from collections.abc import Callable, Iterator

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from spacetime import SettingError, SettingWarning
from spacetime.media import files
from spacetime.sharding import chips

INDEX = 'programs.json'
FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')


def target(mesh: jax.sharding.Mesh) -> dict[str, str]:
  """What compiled programs depend on, besides their own text, by name."""
  device = mesh.devices.flat[0]
  values = {
    'chips': f'{mesh.size} x {device.device_kind}',
    'mesh': ', '.join(f'{axis}={n}' for axis, n in mesh.shape.items()),
    **chips.versions(),
    **{name: os.environ.get(name, '') for name in FLAGS},
  }
  if device.platform == 'cpu':
    values['processor'] = processor()
  return values


def processor(cpuinfo: str = '/proc/cpuinfo') -> str:
  """Name of this machine's processor and a hash of its instructions, which
  virtual machines of one name may lack."""
  path, lines = pathlib.Path(cpuinfo), {}
  if path.exists():
    for line in path.read_text().splitlines():
      key, colon, value = line.partition(':')
      if colon:
        lines.setdefault(key.strip(), value.strip())
  name = lines.get('model name') or platform.processor() or platform.machine()
  instructions = lines.get('flags') or lines.get('Features')  # x86, or Arm
  if not instructions:
    return name
  text = ' '.join(sorted(instructions.split()))
  return f'{name} ({hashlib.sha256(text.encode()).hexdigest()[:8]})'


class Store:
  """A folder of compiled programs.

  Args:
    folder: the folder.
    mesh: mesh that the programs run on; its devices may be descriptions.
    new: whether the folder is created if it does not exist.

  Raises:
    SettingError: no such folder, one that cannot be written, or programs for
      other chips, versions or flags; the first difference is named.
    ValueError: a damaged folder.
  """

  def __init__(self, folder, mesh: jax.sharding.Mesh, *, new: bool = False):
    self.folder, self._mesh = files.as_path(folder), mesh
    self._has_warned = False
    here = target(mesh)
    if new:
      try:
        files.check_writable(folder)
      except ValueError as e:
        raise SettingError(
          'save', str(folder), 'a folder for programs', hint=str(e)
        ) from e
    self._index = {'target': here, 'programs': {}}
    path = self.folder / INDEX
    if not path.exists():
      if not new:
        raise SettingError(
          'programs',
          str(folder),
          f'a folder with {INDEX}, made by spacetime compile --save',
        )
      if self.folder.exists() and any(self.folder.iterdir()):
        raise SettingError(
          'save', str(folder), f'a new folder, or one with {INDEX}'
        )
      return
    try:
      values = json.loads(path.read_text())
      there, programs = dict(values['target']), dict(values['programs'])
      self._index['target'] = there
      self._index['programs'] = {
        key: {name: str(entry[name]) for name in ('name', 'file', 'sha256')}
        for key, entry in programs.items()
      }
    except (OSError, ValueError, KeyError, TypeError) as e:
      raise ValueError(f'{path}: damaged; make the programs again') from e
    for name in here | there:
      if here.get(name) != there.get(name):
        raise SettingError(
          'save' if new else 'programs',
          str(folder),
          f'programs for {name} {here.get(name)!r}, not '
          f'{there.get(name)!r}: compile them again in another folder',
        )
    if not new:  # found now, not in the middle of a video
      for entry in self._index['programs'].values():
        self._read(entry)

  @property
  def names(self) -> list[str]:
    """Names of the saved programs, in the order in which they were made."""
    return [entry['name'] for entry in self._index['programs'].values()]

  def find(
    self, lowered: jax.stages.Lowered, name: str | None = None
  ) -> Callable | None:
    """The compiled program of a lowered one; None if there is none.

    Args:
      lowered: the lowered program.
      name: its name; once, a missing one of a saved name is warned of.

    Raises:
      ValueError: its file is missing or damaged, or cannot be loaded.
    """
    entry = self._index['programs'].get(_key(lowered))
    if entry is None:
      if name in self.names and not self._has_warned:
        self._has_warned = True
        warnings.warn(
          SettingWarning(
            'programs',
            str(self.folder),
            f'its program {name!r} is of another model, size, number of clips '
            'or sampler: compiled now',
          ),
          stacklevel=2,
        )
      return None
    data = self._read(entry)
    devices = [*self._mesh.devices.flat]
    try:
      return serialize_executable.deserialize_and_load(
        data,
        lowered.in_tree,
        lowered.out_tree,
        backend=devices[0].client,
        execution_devices=devices,
      )
    except Exception as e:  # of pickle, or of any runtime
      reason = str(e).splitlines()[0] if str(e) else type(e).__name__
      raise ValueError(
        f'{self.folder / entry["file"]}: cannot be loaded here ({reason}); '
        'make the programs again'
      ) from e

  def _read(self, entry: dict[str, str]) -> bytes:
    path = self.folder / entry['file']
    data = path.read_bytes() if path.is_file() else b''
    if hashlib.sha256(data).hexdigest() != entry['sha256']:
      raise ValueError(f'{path}: missing or damaged; make the programs again')
    return data

  def compile(
    self, name: str, lowered: jax.stages.Lowered
  ) -> tuple[jax.stages.Compiled, int]:
    """Compiles and saves a program; returns it and its size in bytes."""
    with without_cache():
      compiled = lowered.compile()
    data, _, _ = serialize_executable.serialize(compiled)
    digest = hashlib.sha256(data).hexdigest()
    file = f'{name}-{digest[:12]}.bin'
    self.folder.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(self.folder / file) as out:
      out.write_bytes(data)
    entry = {'name': name, 'file': file, 'sha256': digest}
    self._index['programs'][_key(lowered)] = entry
    with files.atomic_write(self.folder / INDEX) as out:
      out.write_text(json.dumps(self._index, indent=1))
    return compiled, len(data)


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
  """Compiles anew: on CPUs, a program of the compilation cache cannot be saved
  again, since it lacks its functions."""
  name = 'jax_enable_compilation_cache'
  before = getattr(jax.config, name)
  jax.config.update(name, False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update(name, before)
    compilation_cache.reset_cache()


def _key(lowered: jax.stages.Lowered) -> str:
  return hashlib.sha256(lowered.as_text().encode()).hexdigest()
