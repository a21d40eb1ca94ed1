"""Sharding: the mesh, the tables that place every array, batches, processes.

Also names of TPU slices and constants of chips, which launchers read without
JAX: names of this package are imported on first use. Nothing here knows of
models, except for the paths of their parameters in tables.py.
"""

import importlib

_MODULES = {
  'batches': ('DataShare', 'batch_sharding', 'data_share', 'put_batch'),
  'mesh': (
    'AXES',
    'MeshConfig',
    'as_mesh',
    'make_mesh',
    'mesh_shape',
    'single_device_mesh',
  ),
  'tables': (
    'LOGICAL_AXIS_RULES',
    'PARAM_LOGICAL_AXES',
    'constrain',
    'divisible_axis',
    'num_shards',
    'param_shardings',
    'param_spec',
    'path_name',
    'spec',
    'state_shardings',
  ),
}
_MODULE_OF = {name: key for key, names in _MODULES.items() for name in names}


def __getattr__(name: str):
  if name not in _MODULE_OF:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'{__name__}.{_MODULE_OF[name]}')
  return getattr(module, name)


def __dir__() -> list[str]:
  return sorted(_MODULE_OF)
