"""Kernels in the dtype that computes with them, before they are gathered.

A kernel lies in parts over the mesh and is gathered where a block needs it.
The layers cast what they are given: cast here, on the parts, half as much is
sent, and the gradients that come back are as small.
"""

import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from spacetime import sharding

# Computed in float32, whatever the model's dtype is.
FLOAT32 = r'dit/time_(in|out)/kernel'


def cast(params: dict, dtype: str) -> dict:
  """The transformer's parameters with their kernels in a dtype.

  Without a mesh that splits them there is nothing to gather, and they stay.

  Args:
    params: of the transformer, float32.
    dtype: of its matrix products.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if sharding.num_shards('embed', mesh) == 1:
    return params

  def place(path, leaf):
    name = f'dit/{sharding.path_name(path)}'
    if not name.endswith('/kernel') or re.fullmatch(FLOAT32, name):
      return leaf
    spec: PartitionSpec = sharding.param_spec(name, leaf.shape)
    return jax.lax.with_sharding_constraint(leaf.astype(jnp.dtype(dtype)), spec)

  return jax.tree_util.tree_map_with_path(place, params)
