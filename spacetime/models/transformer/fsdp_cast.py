"""Casts sharded kernels to the compute dtype before they are gathered.

A kernel is sharded over the mesh and gathered where a block needs it. Layers
cast their parameters; casting the shards first halves the bytes of the gather,
and of the gradients on their way back.
"""

import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from spacetime import sharding

# These layers compute in float32, whatever the dtype of the model.
FLOAT32 = r'dit/(time|end)_(in|out)/kernel'


def cast_kernels(params: dict, dtype: str) -> dict:
  """Returns the transformer's parameters with sharded kernels in a dtype.

  Without a mesh that shards them there is no gather, and nothing changes.

  Args:
    params: parameters of the transformer, float32.
    dtype: dtype of its matrix products.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if sharding.num_shards('embed', mesh) == 1:
    return params

  def cast(path, leaf):
    name = f'dit/{sharding.path_name(path)}'
    if not name.endswith('/kernel') or re.fullmatch(FLOAT32, name):
      return leaf
    spec: PartitionSpec = sharding.param_spec(name, leaf.shape)
    return jax.lax.with_sharding_constraint(leaf.astype(jnp.dtype(dtype)), spec)

  return jax.tree_util.tree_map_with_path(cast, params)
