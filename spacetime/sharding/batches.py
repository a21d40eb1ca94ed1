"""Batches: the rows that a process reads, and their placement on the mesh."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import NamedSharding

from spacetime.sharding.tables import LOGICAL_AXIS_RULES, spec


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of a batch: rows over data and fsdp."""
  return NamedSharding(mesh, spec('batch'))


@dataclasses.dataclass(frozen=True)
class DataShare:
  """The part of each batch that a process reads.

  Attributes:
    index: number of the part; processes that hold the same rows share one.
    count: number of parts.
    shards: shards of the batch that the process holds, rising. They need not be
      neighbours: on v5p and TPU7x a host holds chips of a cube.
    num_shards: shards of the batch.
  """

  index: int = 0
  count: int = 1
  shards: tuple[int, ...] = (0,)
  num_shards: int = 1

  def rows(self, batch_size: int) -> np.ndarray:
    """Rows of a batch of `batch_size` rows over all processes, rising: in the
    order in which `put_batch` takes them."""
    rows = np.arange(batch_size).reshape(self.num_shards, -1)
    return rows[list(self.shards)].reshape(-1)


def data_share(mesh: jax.sharding.Mesh, process: int) -> DataShare:
  """Returns the share of the data that a process reads.

  Processes whose devices hold the same rows, because only context or tensor
  separates them, read the same share.

  Raises:
    ValueError: processes whose rows overlap in part.
  """
  rows = math.prod(mesh.shape[axis] for axis in LOGICAL_AXIS_RULES['batch'])
  held = {}
  for row, devices in enumerate(mesh.devices.reshape(rows, -1)):
    for device in devices:
      held.setdefault(device.process_index, set()).add(row)
  shares = sorted({tuple(sorted(own)) for own in held.values()})
  if sum(len(share) for share in shares) != rows:
    raise ValueError(
      f'mesh {dict(mesh.shape)}: the rows of processes overlap in part, '
      f'{shares}; expected mesh.context x mesh.tensor to divide the devices of '
      'a process, or to be a multiple of them'
    )
  own = tuple(sorted(held[process]))
  return DataShare(shares.index(own), len(shares), own, rows)


def put_batch(
  batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
  """Makes global arrays from this process's rows of a batch.

  The rows are those of DataShare.rows, in that order. A row that several
  devices share, each with some of its tokens, occurs once.
  """
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in batch.items()
  }
