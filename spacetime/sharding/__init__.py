"""Where every array lies: the mesh, the tables, and batches on it."""

from spacetime.sharding.batches import batch_sharding, data_share, put_batch
from spacetime.sharding.mesh import (
  AXES,
  MeshConfig,
  make_mesh,
  mesh_shape,
  single_device_mesh,
)
from spacetime.sharding.tables import (
  LOGICAL_AXIS_RULES,
  PARAM_LOGICAL_AXES,
  constrain,
  divisible_axis,
  num_shards,
  param_shardings,
  param_spec,
  path_name,
  spec,
  state_shardings,
)

__all__ = [
  'AXES',
  'LOGICAL_AXIS_RULES',
  'PARAM_LOGICAL_AXES',
  'MeshConfig',
  'batch_sharding',
  'constrain',
  'data_share',
  'divisible_axis',
  'make_mesh',
  'mesh_shape',
  'num_shards',
  'param_shardings',
  'param_spec',
  'path_name',
  'put_batch',
  'single_device_mesh',
  'spec',
  'state_shardings',
]
