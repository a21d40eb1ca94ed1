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


def parse(argv: list[str]) -> list[str]:
  """Parses flags, a config and its overrides among them.

  Raises:
    ValueError: a flag, a config or a key of it that there is not.
  """
  try:
    return flags.FLAGS(argv)
  except flags.Error as e:
    # config_flags puts a whole traceback into its message: its last line tells.
    first, *lines = [line for line in str(e).splitlines() if line.strip(' ;')]
    if 'Traceback' in str(e):
      last = [line for line in lines if not line.startswith((' ', ';'))][-1]
      first = f'{first.split(" Error whilst")[0]} {last}'
    raise ValueError(f'{first}; see --help') from e
  except (AttributeError, KeyError) as e:  # of an override --config.a.b=c
    raise ValueError(
      f'a key that the config does not have: {str(e).strip(chr(34))}; given '
      f'{" ".join(a for a in argv if a.startswith("--config."))}'
    ) from e
  except OSError as e:
    raise ValueError(f'{e}; change --config') from e


def run(main: Callable[[], None]) -> None:
  """Runs a main under absl; a ValueError is told in one line, exit code 2."""
  app.run(
    lambda argv: _told(_begin, main, argv),
    flags_parser=lambda argv: _told(parse, argv),
  )


def _begin(main: Callable[[], None], argv: list[str]) -> None:
  if not flags.FLAGS['verbosity'].present:  # Orbax tells every file it opens
    logging.set_verbosity(logging.WARNING)
  if len(argv) > 1:
    raise ValueError(
      f'arguments {argv[1:]}: expected flags only, as --name=value; see --help'
    )
  setup()
  main()


def _told(call: Callable, *arguments):
  try:
    return call(*arguments)
  except ValueError as e:
    if os.environ.get('SPACETIME_TRACEBACK'):
      raise
    print(f'error: {e}', file=sys.stderr)
    sys.exit(2)
