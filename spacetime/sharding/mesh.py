"""The mesh: devices along four axes, on one slice or on several."""

import dataclasses
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

AXES = ('data', 'fsdp', 'context', 'tensor')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; -1 on one axis takes what is left.

  Attributes:
    data: copies of the state, each with rows of the batch of its own.
    fsdp: parts of the state, each with rows of its own too.
    context: parts of a clip's tokens.
    tensor: parts of the heads and of the hidden layers.
    num_slices: slices that only the data-centre network joins. Data, or data
      and fsdp, lie across them: what these axes send is little beside what
      context and tensor do.
  """

  data: int = -1
  fsdp: int = 1
  context: int = 1
  tensor: int = 1
  num_slices: int = 1


def mesh_shape(config: MeshConfig, *, devices: int) -> tuple[int, ...]:
  """Resolves -1 and checks that the mesh uses every device.

  Raises:
    ValueError: sizes whose product is not the number of devices.
  """
  sizes = [getattr(config, axis) for axis in AXES]
  told = ', '.join(f'{a}={s}' for a, s in zip(AXES, sizes, strict=True))
  free = [i for i, size in enumerate(sizes) if size == -1]
  if len(free) > 1 or any(s == 0 or s < -1 for s in sizes):
    raise ValueError(
      f'mesh ({told}): expected positive sizes and at most one -1; change '
      'mesh.data, mesh.fsdp, mesh.context or mesh.tensor'
    )
  known = math.prod(size for size in sizes if size != -1)
  if devices % known or (not free and known != devices):
    raise ValueError(
      f'mesh ({told}): {known} does not divide {devices} devices evenly; '
      'change mesh.data, mesh.fsdp, mesh.context, mesh.tensor or --cpu_devices'
    )
  for i in free:
    sizes[i] = devices // known
  return tuple(sizes)


def across_slices(shape: tuple[int, ...], slices: int) -> tuple[int, ...]:
  """How many ways each axis of a mesh lies across slices: data first, then
  fsdp, and never context or tensor.

  Raises:
    ValueError: data and fsdp that the slices do not divide.
  """
  if slices < 1:
    raise ValueError(f'mesh.num_slices={slices}: expected 1 or more')
  data = math.gcd(shape[0], slices)
  fsdp = slices // data
  if shape[1] % fsdp:
    raise ValueError(
      f'mesh.num_slices={slices}: expected mesh.data={shape[0]} or mesh.data x '
      f'mesh.fsdp={shape[0]} x {shape[1]} to lie across the slices, since '
      'context and tensor stay within one; change mesh.data or mesh.fsdp to a '
      f'multiple of {slices}'
    )
  return (data, fsdp) + (1,) * (len(shape) - 2)


def make_mesh(config: MeshConfig, *, devices=None) -> jax.sharding.Mesh:
  """The mesh over all devices, or over those given, which need not be there.

  Axes are Auto. Within a slice devices lie as its network joins them.

  Raises:
    ValueError: see mesh_shape and across_slices; or devices of another number
      of slices.
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


def by_slice(devices, slices: int) -> list[list]:
  """The devices of each slice; those that know of none are cut in order.

  Raises:
    ValueError: TPUs of another number of slices.
  """
  found = {}
  for device in devices:
    found.setdefault(getattr(device, 'slice_index', 0), []).append(device)
  if len(found) == slices:
    return [found[index] for index in sorted(found)]
  if devices[0].platform == 'tpu':
    raise ValueError(
      f'mesh.num_slices={slices}: the devices are of {len(found)} slices; '
      f'change mesh.num_slices to {len(found)}'
    )
  size = len(devices) // slices
  return [list(devices[i * size : (i + 1) * size]) for i in range(slices)]
