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
  PARAM_AXES,
  RULES,
  constrain,
  fitting,
  param_shardings,
  param_spec,
  path_name,
  spec,
  state_shardings,
  ways,
)

__all__ = [
  'AXES',
  'PARAM_AXES',
  'RULES',
  'MeshConfig',
  'batch_sharding',
  'constrain',
  'data_share',
  'fitting',
  'make_mesh',
  'mesh_shape',
  'param_shardings',
  'param_spec',
  'path_name',
  'put_batch',
  'single_device_mesh',
  'spec',
  'state_shardings',
  'ways',
]
