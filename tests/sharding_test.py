"""The mesh and its two tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from spacetime import sharding


def test_mesh_takes_what_is_left():
  config = sharding.MeshConfig(data=-1, fsdp=2, tensor=2)
  assert sharding.mesh_shape(config, devices=8) == (2, 2, 1, 2)
  mesh = sharding.make_mesh(config)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'context': 1, 'tensor': 2}


@pytest.mark.parametrize(
  'sizes, text',
  [
    (dict(data=3), '3 does not divide 8 devices evenly'),
    (dict(data=4), '4 does not divide 8 devices evenly'),
    (dict(data=-1, fsdp=-1), 'at most one -1'),
    (dict(data=0), 'expected positive sizes'),
  ],
)
def test_refuses_meshes(sizes, text):
  with pytest.raises(ValueError, match=text):
    sharding.mesh_shape(sharding.MeshConfig(**sizes), devices=8)


def test_constrain_checks_names_without_a_mesh_too():
  x = jnp.zeros((2, 3))
  assert sharding.constrain(x, 'batch', None) is x
  with pytest.raises(ValueError, match="logical axes \\['bathc'\\]"):
    sharding.constrain(x, 'bathc', None)
  with pytest.raises(ValueError, match='expected 2 names'):
    sharding.constrain(x, 'batch')


def test_constrain_places_on_a_mesh():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))
  place = jax.jit(lambda x: sharding.constrain(x, 'batch', None))
  with jax.set_mesh(mesh):
    y = place(jnp.zeros((8, 3)))
  assert y.sharding.spec == P(('data', 'fsdp'))


def test_parameters_without_a_rule_are_refused():
  with pytest.raises(ValueError, match='dit/new/kernel .*: no rule'):
    sharding.param_spec('dit/new/kernel', (3, 4))
  with pytest.raises(ValueError, match='names 3 axes'):
    sharding.param_spec('dit/blocks/mlp_in/kernel', (3, 4))


def test_parameters_that_the_mesh_does_not_divide_are_refused():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=8))
  params = {'dit': {'head': {'kernel': jnp.zeros((12, 5))}}}
  with pytest.raises(ValueError, match='mesh.fsdp=8.* does not divide 12'):
    sharding.param_shardings(params, mesh)


def test_optimizer_state_lies_with_its_parameters():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=8))
  params = {'dit': {'head': {'kernel': jnp.zeros((16, 5))}}}
  state = ({'count': jnp.zeros(()), 'mu': params}, params)
  placed = sharding.state_shardings(state, params, mesh)
  assert placed[0]['mu']['dit']['head']['kernel'].spec == P(
    ('fsdp', 'context'), None
  )
  assert placed[0]['count'].spec == P()


def test_put_batch_splits_rows():
  mesh = sharding.make_mesh(sharding.MeshConfig())
  rows = np.arange(16).reshape(8, 2)
  batch = sharding.put_batch({'x': rows}, mesh)
  np.testing.assert_array_equal(batch['x'], rows)
  assert batch['x'].addressable_shards[0].data.shape == (1, 2)
