"""Compiled programs of earlier commands on a CPU, found without tracing.

JAX's compilation cache needs a program's lowered text, and tracing a small
network takes longer than sampling it. Here the key is a hash of all that the
text depends on: the sources of this package, the versions of JAX and Flax,
JAX's options, the processor, the model's settings, the program's name with its
settings, and the shapes of its arguments. Any change of these compiles anew.

The files are code, as those of JAX's cache: keep the folder your own.
"""

import hashlib
import os
import pathlib
import pickle
from collections.abc import Callable

import jax
import numpy as np
from absl import logging
from jax.experimental import serialize_executable

from spacetime.checkpoint import shape_cache
from spacetime.media import files
from spacetime.pipeline import saved_programs

MOST_BYTES = 512 * 2**20  # of the folder; the programs used longest ago go
SUFFIX = '.program'


class ProgramCache:
  """The programs of one model in a folder of programs of any.

  Args:
    folder: the folder; it is created when a program is saved.
    model: all that the model's networks are made from, as text.
    mesh: its device.
  """

  def __init__(self, folder: os.PathLike, model: str, mesh: jax.sharding.Mesh):
    self.folder, self._mesh = files.as_path(folder), mesh
    self._model = repr(
      (
        model,
        shape_cache.code_version(),
        saved_programs.target(mesh),
        _options(),
      )
    )

  def get(
    self, name, jitted, args: tuple, compiling: Callable
  ) -> jax.stages.Compiled:
    """The compiled program of arguments, from the folder or compiled now.

    Args:
      name: of the program, with its settings; repr() tells them apart.
      jitted: the function of jax.jit.
      args: its arguments.
      compiling: context in which it is compiled.
    """
    path = self.folder / f'{self._key(name, args)}{SUFFIX}'
    return self._load(path) or self._compile(path, jitted, args, compiling)

  def _key(self, name, args: tuple) -> str:
    leaves, structure = jax.tree.flatten(args)
    shapes = [
      (np.shape(x), str(getattr(x, 'dtype', type(x).__name__))) for x in leaves
    ]
    text = repr((self._model, name, str(structure), shapes))
    return hashlib.sha256(text.encode()).hexdigest()

  def _load(self, path: pathlib.Path) -> jax.stages.Compiled | None:
    try:
      data = path.read_bytes()
    except OSError:
      return None
    digest, body = data[:32], data[32:]
    if hashlib.sha256(body).digest() != digest:
      logging.info('%s: damaged; compiled anew', path)
      return None
    try:
      os.utime(path)  # used now
    except OSError:
      pass  # of a folder that may only be read
    devices = [*self._mesh.devices.flat]
    return serialize_executable.deserialize_and_load(
      *pickle.loads(body),
      backend=devices[0].client,
      execution_devices=devices,
    )

  def _compile(self, path, jitted, args, compiling) -> jax.stages.Compiled:
    with compiling(), saved_programs.without_cache():
      compiled = jitted.lower(*args).compile()
    body = pickle.dumps(serialize_executable.serialize(compiled))
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      with files.atomic_write(path) as out:
        out.write_bytes(hashlib.sha256(body).digest() + body)
      self._prune()
    except OSError as e:
      logging.info('%s: not saved: %s', path, e)
    return compiled

  def _prune(self) -> None:
    """Removes the programs used longest ago beyond the folder's limit."""
    entries = []
    for path in self.folder.glob(f'*{SUFFIX}'):
      try:
        entries.append((path.stat().st_mtime_ns, path.stat().st_size, path))
      except FileNotFoundError:
        continue  # removed by another command
    total = 0
    for _, size, path in sorted(entries, reverse=True):
      total += size
      if total > MOST_BYTES:
        path.unlink(missing_ok=True)


def _options() -> str:
  """JAX's options, but for those of caches and logs."""
  values = jax.config.values
  return repr(
    {
      name: values[name]
      for name in sorted(values)
      if 'cache' not in name and 'log' not in name
    }
  )
