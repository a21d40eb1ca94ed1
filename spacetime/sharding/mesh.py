"""The device mesh: four axes, on one slice or on several."""

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from spacetime import SettingError

AXES = ('data', 'fsdp', 'context', 'tensor')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; -1 on one axis takes the remaining devices.

  Attributes:
    data: replicas of the state, each with its own rows of the batch.
    fsdp: shards of the state, each with its own rows of the batch too.
    context: shards of a clip's tokens.
    tensor: shards of the heads and of the MLP.
    num_slices: TPU slices, joined by the data-centre network. Data, or data and
      fsdp, extend across slices: they send little compared with context and
      tensor.
  """

  data: int = -1
  fsdp: int = 1
  context: int = 1
  tensor: int = 1
  num_slices: int = 1


def mesh_shape(config: MeshConfig, *, devices: int) -> tuple[int, ...]:
  """Resolves -1 and checks that the mesh uses every device.

  Raises:
    SettingError: sizes whose product is not the number of devices.
  """
  sizes = [getattr(config, axis) for axis in AXES]
  for axis, size in zip(AXES, sizes, strict=True):
    is_integer = isinstance(size, numbers.Integral) and size is not True
    if not is_integer or size == 0 or size < -1:
      raise SettingError(
        f'mesh.{axis}', size, '1 or more, or -1 for the remaining devices'
      )
  free = [i for i, size in enumerate(sizes) if size == -1]
  if len(free) > 1:
    raise SettingError(
      f'mesh.{AXES[free[1]]}', -1, f'at most one -1, as `mesh.{AXES[free[0]]}`'
    )
  known = math.prod(size for size in sizes if size != -1)
  if devices % known or (not free and known != devices):
    largest = max(range(len(AXES)), key=lambda i: sizes[i])
    relation = 'divides' if free else 'is'
    raise SettingError(
      f'mesh.{AXES[largest]}',
      sizes[largest],
      'a mesh (`mesh.data` x `mesh.fsdp` x `mesh.context` x `mesh.tensor`) '
      f'whose product {relation} {devices}, the number of devices, not {known}',
      hint='change one of them, or `cpu_devices`',
    )
  for i in free:
    sizes[i] = devices // known
  return tuple(sizes)


def across_slices(shape: tuple[int, ...], slices: int) -> tuple[int, ...]:
  """Returns the number of slices along each axis of a mesh: data first, then
  fsdp, never context or tensor.

  Raises:
    SettingError: data and fsdp that the slices do not divide.
  """
  if slices < 1:
    raise SettingError('mesh.num_slices', slices, '1 or more')
  data = math.gcd(shape[0], slices)
  fsdp = slices // data
  if shape[1] % fsdp:
    raise SettingError(
      'mesh.num_slices',
      slices,
      f'a divisor of `mesh.data`={shape[0]}, or of `mesh.data` x `mesh.fsdp` = '
      f'{shape[0]} x {shape[1]}, since context and tensor stay within a slice',
      hint=f'change `mesh.data` or `mesh.fsdp` to a multiple of {slices}',
    )
  return (data, fsdp) + (1,) * (len(shape) - 2)


def make_mesh(
  config: MeshConfig, *, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """Makes the mesh over all devices, or over a list, which may be descriptions.

  Axes are Auto. Within a slice, neighbours on the mesh are neighbours in its
  network.

  Raises:
    SettingError: see mesh_shape and across_slices; or devices of another
      number of slices.
  """
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(config, devices=len(devices))
  across = across_slices(shape, config.num_slices)
  within = tuple(n // a for n, a in zip(shape, across, strict=True))
  # jax.make_mesh would refuse to split an axis of a torus in two.
  slices = [
    mesh_utils.create_device_mesh(within, part, allow_split_physical_axes=True)
    for part in by_slice(devices, config.num_slices)
  ]
  placed = np.stack(slices).reshape(*across[:2], *within)
  placed = placed.transpose(0, 2, 1, 3, 4, 5).reshape(shape)
  return jax.sharding.Mesh(
    placed, AXES, axis_types=(AxisType.Auto,) * len(AXES)
  )


def single_device_mesh() -> jax.sharding.Mesh:
  """The mesh of the first device alone: nothing is sharded."""
  return make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])


def as_mesh(
  value: 'jax.sharding.Mesh | MeshConfig | Mapping | None',
) -> jax.sharding.Mesh:
  """A mesh, or that of a MeshConfig or of its fields, such as {'context': 4}.

  None is the first device alone.

  Raises:
    SettingError: an unknown axis, no mesh or one of other axes, or see
      make_mesh.
  """
  if value is None:
    return single_device_mesh()
  if isinstance(value, Mapping):
    for name in value:
      if name not in AXES:
        raise SettingError(f'mesh.{name}', value[name], f'an axis of {AXES}')
    value = MeshConfig(**value)
  if isinstance(value, MeshConfig):
    return make_mesh(value)
  if getattr(value, 'axis_names', None) != AXES:
    raise SettingError(
      'mesh',
      str(value),
      f"sizes of the axes {', '.join(AXES)}, such as {{'context': 4}}, or a "
      'mesh of these axes',
    )
  return value


def by_slice(devices: Sequence[jax.Device], slices: int) -> list[list]:
  """Groups devices by slice; devices without slices are split in order.

  Raises:
    SettingError: TPUs of another number of slices.
  """
  groups = {}
  for device in devices:
    groups.setdefault(getattr(device, 'slice_index', 0), []).append(device)
  if len(groups) == slices:
    return [groups[index] for index in sorted(groups)]
  if devices[0].platform == 'tpu':
    raise SettingError(
      'mesh.num_slices',
      slices,
      f'{len(groups)}, the number of slices of the devices',
    )
  size = len(devices) // slices
  return [list(devices[i * size : (i + 1) * size]) for i in range(slices)]
