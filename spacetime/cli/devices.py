"""Flags of every command that computes: devices and the compilation cache."""

import glob
import importlib.util
import os
import sys
from typing import Any

from absl import flags

from spacetime import SettingError
from spacetime.cli import help_pages
from spacetime.media import files

_CPU_DEVICES = flags.DEFINE_integer(
  'cpu_devices',
  0,
  'Number of CPU devices to emulate; 0 uses the devices of the machine. '
  'Example: --cpu_devices=8.',
)
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  '~/.cache/spacetime/jax',
  'Folder of compiled programs, so that a second run starts at once; empty '
  'keeps none. Example: --compilation_cache=gs://BUCKET/compiled.',
)
help_pages.group('devices', 'cpu_devices', 'compilation_cache')
# Device files of TPUs, NVIDIA's and AMD's GPUs and others.
ACCELERATORS = (
  *('/dev/accel*', '/dev/vfio/[0-9]*', '/dev/nvidia*', '/dev/dxg'),
  *('/dev/kfd', '/dev/dri/renderD*', '/dev/neuron*'),
)


def config() -> dict[str, Any]:
  """Names and values of JAX's settings, without importing it.

  Makes the folder of the compilation cache.
  """
  if _CPU_DEVICES.value < 0:
    raise SettingError('cpu_devices', _CPU_DEVICES.value, '0 or more')
  result = {}
  if _CPU_DEVICES.value:
    result['jax_platforms'] = 'cpu'
    result['jax_num_cpu_devices'] = _CPU_DEVICES.value
  if _CACHE.value:
    folder = files.as_path(_CACHE.value)
    try:
      if not files.is_url(folder):
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
      print(f'no compilation cache: {folder}: {e.strerror}', file=sys.stderr)
    else:
      result['jax_compilation_cache_dir'] = os.fspath(folder)
      if files.is_url(folder):
        # XLA's own caches beside it know files of this machine alone.
        result['jax_persistent_cache_enable_xla_caches'] = 'none'
      result['jax_persistent_cache_min_compile_time_secs'] = 0.1
  return result


def program_cache() -> str | None:
  """Folder of the programs of sampling, beside JAX's; None keeps none."""
  if not _CACHE.value or files.is_url(files.as_path(_CACHE.value)):
    return None
  return os.fspath(files.as_path(_CACHE.value) / 'programs')


def setup() -> None:
  """Sets devices and the compilation cache, before JAX runs."""
  import jax  # here, so that help and refusals of flags do not wait for it

  values = config()
  if jax.config.jax_platforms is None and has_idle_compiler():
    values.setdefault('jax_platforms', 'cpu')
  for name, value in values.items():
    jax.config.update(name, value)


def has_idle_compiler() -> bool:
  """Whether the compiler of TPUs is installed where no accelerator is.

  JAX would start it, and it prints errors of its own about the missing chips.
  """
  if sys.platform != 'linux' or importlib.util.find_spec('libtpu') is None:
    return False
  return not any(glob.glob(pattern) for pattern in ACCELERATORS)
