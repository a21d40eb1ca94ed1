"""What every command shares: devices, the compilation cache, errors."""

import os
import pathlib
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging

_CPU_DEVICES = flags.DEFINE_integer(
  'cpu_devices', 0, 'Emulate so many devices on the CPU; 0 uses what is there.'
)
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  '~/.cache/spacetime/jax',
  'Folder for compiled programs, so that a second run starts at once; empty '
  'keeps none.',
)


def setup() -> None:
  """Sets devices and the cache; call first in a main, before JAX runs."""
  if _CPU_DEVICES.value < 0:
    raise ValueError(f'--cpu_devices={_CPU_DEVICES.value}: expected 0 or more')
  if _CPU_DEVICES.value:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', _CPU_DEVICES.value)
  if _CACHE.value:
    folder = pathlib.Path(_CACHE.value).expanduser()
    try:
      folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
      print(f'no compilation cache: {folder}: {e.strerror}', file=sys.stderr)
    else:
      jax.config.update('jax_compilation_cache_dir', os.fspath(folder))
      jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def run(main: Callable[[], None]) -> None:
  """Runs a main under absl; a ValueError is told in one line, exit code 2."""

  def guarded(argv):
    if not flags.FLAGS['verbosity'].present:  # Orbax tells every file it opens
      logging.set_verbosity(logging.WARNING)
    try:
      if len(argv) > 1:
        raise ValueError(
          f'arguments {argv[1:]}: expected flags only, as --name=value; see '
          '--help'
        )
      setup()
      main()
    except ValueError as e:
      if os.environ.get('SPACETIME_TRACEBACK'):
        raise
      print(f'error: {e}', file=sys.stderr)
      sys.exit(2)

  app.run(guarded)
