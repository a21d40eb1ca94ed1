"""Runs the autoencoder on several devices, each with some rows or columns.

Only shardings are set: with the frames, the latents and the caches split along
one side of the picture, XLA's partitioner exchanges the rows that each
convolution needs of its neighbours, and gathers a frame only in the attention
of the coarsest level, where every position attends to all others. Memory for
activations falls with the number of devices; each has all parameters.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from spacetime.sharding import multihost

SIDES = {'height': 2, 'width': 3}


@dataclasses.dataclass(frozen=True)
class Coder:
  """Arguments of `streaming.decode_chunks` or `encode_chunks`.

  Attributes:
    params: parameters of the autoencoder, replicated on every device.
    first: (params, x) -> (cache, y), jitted; x from the host.
    step: (params, cache, x) -> (cache, y), jitted; the cache is donated.
    side: the side that is split, 'height' or 'width'.
  """

  params: dict
  first: Callable
  step: Callable
  side: str


def choose_side(latent: tuple[int, int], devices: int) -> str:
  """The side of the latents to split: the height if `devices` divide it.

  Args:
    latent: rows and columns of the latents.
    devices: number of devices to split over.

  Raises:
    ValueError: neither side divides.
  """
  for (side, _), size in zip(SIDES.items(), latent, strict=True):
    if size % devices == 0:
      return side
  raise ValueError(
    f'latents of {latent[0]} x {latent[1]} cells over {devices} devices: '
    'expected a number that divides the rows or the columns; change '
    '`decode_shards` or the size of the video'
  )


def shared_devices(
  mesh: jax.sharding.Mesh, latent: tuple[int, int]
) -> tuple[jax.Device, ...]:
  """The devices of a mesh if they divide a side of the latents and are all of
  this process; else ()."""
  if multihost.spans_processes(mesh):
    return ()
  divides = any(size % mesh.size == 0 for size in latent)
  return tuple(mesh.devices.flat) if mesh.size > 1 and divides else ()


def decoder(
  autoencoder,
  params,
  devices: Sequence[jax.Device],
  *,
  latent: tuple[int, int],
  side: str | None = None,
) -> Coder:
  """Decoding split over devices.

  Args:
    autoencoder: an `Autoencoder` or `IdentityAutoencoder`.
    params: parameters of the autoencoder.
    devices: devices to split over.
    latent: rows and columns of the latents.
    side: 'height' or 'width'; None uses `choose_side`.

  Raises:
    ValueError: an unknown side, or one that the devices do not divide.
  """
  functions = autoencoder.decode_first, autoencoder.decode_step
  return _coder(functions, params, devices, latent=latent, side=side)


def encoder(
  autoencoder,
  params,
  devices: Sequence[jax.Device],
  *,
  latent: tuple[int, int],
  side: str | None = None,
) -> Coder:
  """Encoding split over devices; see `decoder`."""
  functions = autoencoder.encode_first, autoencoder.encode_step
  return _coder(functions, params, devices, latent=latent, side=side)


def _coder(functions, params, devices, *, latent, side) -> Coder:
  side = choose_side(latent, len(devices)) if side is None else side
  if side not in SIDES:
    raise ValueError(f'side={side!r}: expected one of {tuple(SIDES)}')
  size = latent[SIDES[side] - 2]
  if size % len(devices):
    raise ValueError(
      f'a {side} of {size} latent cells over {len(devices)} devices: expected '
      'a number that divides it; change `decode_shards` or the size of the '
      'video'
    )
  mesh = jax.sharding.Mesh(
    np.asarray(devices), ('side',), axis_types=(AxisType.Auto,)
  )
  replicated = NamedSharding(mesh, PartitionSpec())
  # Every array of a cache has the five dimensions of a video.
  split = NamedSharding(mesh, PartitionSpec(*[None] * SIDES[side], 'side'))
  first, step = functions
  return Coder(
    params=jax.device_put(params, replicated),
    first=jax.jit(first, in_shardings=(replicated, split), out_shardings=split),
    step=jax.jit(
      step,
      in_shardings=(replicated, split, split),
      out_shardings=split,
      donate_argnums=1,
    ),
    side=side,
  )
