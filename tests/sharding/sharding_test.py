"""The mesh and its two tables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from spacetime import SettingError, sharding
from spacetime.sharding import mesh as mesh_lib


def test_mesh_shape_resolves_free_axis():
  config = sharding.MeshConfig(data=-1, fsdp=2, tensor=2)
  assert sharding.mesh_shape(config, devices=8) == (2, 2, 1, 2)
  mesh = sharding.make_mesh(config)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 2, 'context': 1, 'tensor': 2}


@pytest.mark.parametrize(
  'sizes, text',
  [
    (dict(data=3), 'mesh.data=3: .* product is 8, .*, not 3'),
    (dict(data=4), 'mesh.data=4: .* product is 8, .*, not 4'),
    (dict(fsdp=3), 'mesh.fsdp=3: .* product divides 8, .*, not 3'),
    (dict(data=-1, fsdp=-1), 'at most one -1'),
    (dict(data=0), 'mesh.data=0: expected 1 or more'),
  ],
)
def test_mesh_shape_refuses(sizes, text):
  with pytest.raises(ValueError, match=text):
    sharding.mesh_shape(sharding.MeshConfig(**sizes), devices=8)


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    ({'context': '2'}, "^mesh.context='2': expected 1 or more, or -1 for"),
    ({'context': 2.0}, '^mesh.context=2.0: expected 1 or more, or -1 for'),
    ({'context': True}, '^mesh.context=True: expected 1 or more, or -1 for'),
    ({'context': None}, '^mesh.context=None: expected 1 or more, or -1'),
    ({'rows': 2}, '^mesh.rows=2: expected an axis of'),
    ('context=2', "^mesh='context=2': expected sizes of the axes data, fsdp"),
    (8, "^mesh='8': expected sizes of the axes data, fsdp, context, tensor"),
    ([2, 4], "^mesh='\\[2, 4\\]': expected sizes of the axes data, fsdp"),
  ],
)
def test_as_mesh_refuses(value, text):
  with pytest.raises(SettingError, match=text):
    sharding.as_mesh(value)


def test_as_mesh_refuses_a_mesh_of_other_axes():
  with pytest.raises(SettingError, match='^mesh=.* a mesh of these axes'):
    sharding.as_mesh(jax.make_mesh((8,), ('rows',)))


@pytest.mark.parametrize(
  'sizes, slices, expected',
  [
    (dict(data=4, context=2), 2, (2, 1, 1, 1)),
    (dict(data=1, fsdp=8), 4, (1, 4, 1, 1)),
    (dict(data=2, fsdp=2, tensor=2), 4, (2, 2, 1, 1)),
  ],
)
def test_make_mesh_extends_only_data_and_fsdp_across_slices(
  sizes, slices, expected
):
  shape = sharding.mesh_shape(sharding.MeshConfig(**sizes), devices=8)
  assert mesh_lib.across_slices(shape, slices) == expected
  mesh = sharding.make_mesh(sharding.MeshConfig(**sizes, num_slices=slices))
  size = 8 // slices
  number = np.vectorize(lambda device: device.id // size)(mesh.devices)
  assert sorted(number.ravel()) == sorted([*range(slices)] * size)
  # Along context and tensor every device is of one slice.
  assert np.all(number == number[:, :, :1, :1])


@pytest.mark.parametrize(
  'sizes, text',
  [
    (
      dict(context=8, data=1, num_slices=2),
      'num_slices=2: expected a divisor of',
    ),
    (
      dict(data=2, tensor=4, num_slices=4),
      'num_slices=4: expected a divisor of',
    ),
    (dict(num_slices=0), 'num_slices=0: expected 1 or more'),
  ],
)
def test_make_mesh_refuses_slices(sizes, text):
  with pytest.raises(ValueError, match=text):
    sharding.make_mesh(sharding.MeshConfig(**sizes))


@dataclasses.dataclass(frozen=True)
class Chip:
  """A device that does not exist."""

  id: int
  slice_index: int = 0
  process_index: int = 0
  platform: str = 'tpu'


def test_by_slice_groups_tpus():
  chips = [Chip(i, slice_index=i % 2) for i in range(4)]
  first, second = mesh_lib.by_slice(chips, 2)
  assert [c.id for c in first] == [0, 2] and [c.id for c in second] == [1, 3]
  with pytest.raises(ValueError, match='num_slices=1: expected 2, the number'):
    mesh_lib.by_slice(chips, 1)


@pytest.mark.parametrize(
  'sizes, order, count, rows',
  [
    # Two processes of four devices.
    ((8, 1, 1, 1), None, 2, [range(8), range(8, 16)]),
    ((1, 4, 2, 1), None, 2, [range(8), range(8, 16)]),
    # Both processes hold parts of all clips: both read all.
    ((1, 1, 8, 1), None, 1, [range(16), range(16)]),
    ((1, 1, 1, 8), None, 1, [range(16), range(16)]),
    # As on v5p, whose hosts hold chips of a cube, and on TPU7x.
    (
      (8, 1, 1, 1),
      (0, 1, 4, 5, 2, 3, 6, 7),
      2,
      [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]],
    ),
    (
      (4, 2, 1, 1),
      (0, 4, 1, 5, 2, 6, 3, 7),
      2,
      [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]],
    ),
  ],
)
def test_data_share_follows_rows_of_processes(sizes, order, count, rows):
  chips = [Chip(i, process_index=i // 4) for i in range(8)]
  placed = np.array(chips)[list(order or range(8))].reshape(sizes)
  mesh = jax.sharding.Mesh(placed, sharding.AXES)
  for process in (0, 1):
    share = sharding.data_share(mesh, process)
    assert (share.index, share.count) == (process if count > 1 else 0, count)
    assert share.rows(16).tolist() == list(rows[process])


def test_data_share_refuses_overlapping_rows():
  chips = [Chip(i, process_index=i // 3) for i in range(6)]
  mesh = jax.sharding.Mesh(np.array(chips).reshape(3, 1, 2, 1), sharding.AXES)
  with pytest.raises(ValueError, match='overlap in part'):
    sharding.data_share(mesh, 0)


def test_constrain_checks_names_without_a_mesh():
  x = jnp.zeros((2, 3))
  assert sharding.constrain(x, 'batch', None) is x
  with pytest.raises(ValueError, match="logical axes \\['bathc'\\]"):
    sharding.constrain(x, 'bathc', None)
  with pytest.raises(ValueError, match='expected 2 names'):
    sharding.constrain(x, 'batch')


def test_constrain_shards_on_a_mesh():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))
  constrained = jax.jit(lambda x: sharding.constrain(x, 'batch', None))
  with jax.set_mesh(mesh):
    y = constrained(jnp.zeros((8, 3)))
  assert y.sharding.spec == P(('data', 'fsdp'))


def test_param_spec_refuses_parameters_without_rule():
  with pytest.raises(ValueError, match='dit/new/kernel .*: no rule'):
    sharding.param_spec('dit/new/kernel', (3, 4))
  with pytest.raises(ValueError, match='names 3 axes'):
    sharding.param_spec('dit/blocks/mlp_in/kernel', (3, 4))


def test_param_shardings_refuses_indivisible_parameters():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=8))
  params = {'dit': {'head': {'kernel': jnp.zeros((12, 5))}}}
  with pytest.raises(ValueError, match='mesh.fsdp=8: .* to divide 12'):
    sharding.param_shardings(params, mesh)


def test_state_shardings_follow_parameters():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=8))
  params = {'dit': {'head': {'kernel': jnp.zeros((16, 5))}}}
  state = ({'count': jnp.zeros(()), 'mu': params}, params)
  shardings = sharding.state_shardings(state, params, mesh)
  assert shardings[0]['mu']['dit']['head']['kernel'].spec == P(
    ('fsdp', 'context'), None
  )
  assert shardings[0]['count'].spec == P()


def test_put_batch_shards_rows():
  mesh = sharding.make_mesh(sharding.MeshConfig())
  rows = np.arange(16).reshape(8, 2)
  batch = sharding.put_batch({'x': rows}, mesh)
  np.testing.assert_array_equal(batch['x'], rows)
  assert batch['x'].addressable_shards[0].data.shape == (1, 2)
