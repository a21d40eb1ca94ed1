"""Batches: which rows a process reads, and where they lie."""

import math

import jax
import numpy as np
from jax.sharding import NamedSharding

from spacetime.sharding.tables import LOGICAL_AXIS_RULES, spec


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The placement of a batch: its first dimension over data and fsdp."""
  return NamedSharding(mesh, spec('batch'))


def data_share(mesh: jax.sharding.Mesh, process: int) -> tuple[int, int]:
  """Which share of the data a process reads: (its number, how many there are).

  Processes whose devices hold the same rows, as those do that context or tensor
  alone sets apart, read the same share.

  Raises:
    ValueError: rows that processes share in part.
  """
  rows = math.prod(mesh.shape[axis] for axis in LOGICAL_AXIS_RULES['batch'])
  held = {}
  for row, devices in enumerate(mesh.devices.reshape(rows, -1)):
    for device in devices:
      held.setdefault(device.process_index, set()).add(row)
  shares = sorted({tuple(sorted(own)) for own in held.values()})
  if sum(len(share) for share in shares) != rows:
    raise ValueError(
      f'mesh {dict(mesh.shape)}: processes hold rows of the batch that they '
      f'share in part, {shares}; expected mesh.context x mesh.tensor to divide '
      'the devices of a process, or to be a multiple of them'
    )
  return shares.index(tuple(sorted(held[process]))), len(shares)


def put_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh):
  """Makes global arrays from this process's rows of the batch; a row that
  several of its devices share, each with some of the tokens, is there once."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in batch.items()
  }
