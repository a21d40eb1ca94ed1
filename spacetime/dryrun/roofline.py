"""Roofline of a compiled program on a chip: memory, communication, time."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from spacetime.dryrun import hlo
from spacetime.sharding import chips

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_AMOUNT = r'([\d.]+)([KMGT]?)i?B?'


@dataclasses.dataclass(frozen=True)
class Memory:
  """Memory of one device, in bytes.

  Attributes:
    rows: name -> bytes: the arguments by name, then activations and
      temporaries, results, the program.
    limit: bytes that a program may use.
    required: bytes that the compiler required when it ran out of memory; None
      if it did not.
  """

  rows: Mapping[str, float]
  limit: float
  required: float | None = None

  @property
  def total(self) -> float:
    """Bytes of all rows, or the bytes required."""
    return self.required or sum(self.rows.values())

  @property
  def fits(self) -> bool:
    """Whether it compiled and stays within the limit."""
    return self.required is None and self.total <= self.limit


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a step for each unit of a chip, alone and at its peak.

  Attributes:
    matrix: seconds of the matrix unit, for the executed FLOPs.
    hbm: seconds of memory traffic.
    interconnect: seconds of collectives.
    flops: model FLOPs of a device.
    peak: FLOP/s of a device.
  """

  matrix: float
  hbm: float
  interconnect: float
  flops: float
  peak: float

  @property
  def overlapped(self) -> float:
    """Seconds if all three overlap."""
    return max(self.matrix, self.hbm, self.interconnect)

  @property
  def serial(self) -> float:
    """Seconds if collectives overlap with nothing."""
    return max(self.matrix, self.hbm) + self.interconnect

  def mfu(self, seconds: float) -> float:
    """Returns the model FLOPs utilisation of a step of this duration."""
    return self.flops / (seconds * self.peak) if seconds else 0.0


def parse_out_of_memory(message: str) -> tuple[float, float] | None:
  """Returns (bytes used, limit) of a compiler's out-of-memory message; None for
  other messages."""
  if 'hbm' not in message.lower():
    return None
  match = re.search(rf'[Uu]sed {_AMOUNT} of {_AMOUNT} hbm', message)
  if not match:
    return None
  used, used_unit, limit, limit_unit = match.groups()
  return float(used) * _UNITS[used_unit], float(limit) * _UNITS[limit_unit]


def advice(
  memory: Memory,
  *,
  mesh: Mapping[str, int],
  rows: int,
  remat: str,
  sharded: Sequence[str] = (),
) -> str:
  """Suggests what to change so that a program may fit.

  Args:
    memory: memory of a program that does not fit.
    mesh: devices along each axis.
    rows: rows of the batch that one device holds at once.
    remat: model.remat.
    sharded: names of the memory rows that are sharded like the parameters.
  """
  state = sum(memory.rows.get(name, 0.0) for name in sharded)
  if state > 0.6 * memory.limit:
    if mesh['data'] > 1:
      return (
        f'the state is most of it: move mesh.data={mesh["data"]} to '
        f'mesh.fsdp (now {mesh["fsdp"]})'
      )
    return 'the state is most of it: use a slice of more chips'
  if remat == 'none':
    return "activations are most of it: set model.remat='attention'"
  if rows > 1:
    return (
      f'{rows} clips at once on a device: set train.accumulate={rows}, or a '
      'smaller data.batch_size'
    )
  if mesh['data'] * mesh['fsdp'] > 1:
    return (
      f'activations of one clip are most of it: set mesh.context='
      f'{2 * mesh["context"]} (now {mesh["context"]}) with half of mesh.data '
      'or mesh.fsdp'
    )
  if remat == 'attention':
    return "activations are most of it: set model.remat='full' or 'offload'"
  return 'use a slice of more chips'


def gathered_activations(
  collectives: Sequence[hlo.Collective],
  *,
  elements: int,
  weights: Sequence[int],
) -> list[hlo.Collective]:
  """Returns the collectives that gather a sharded activation completely.

  These are gathers, and sums over mesh.context, by which the compiler may
  implement a gather (a sum over mesh.tensor is that of a product).

  Args:
    collectives: all of the program.
    elements: elements of an activation of one clip, N D over mesh.tensor.
    weights: numbers of elements that may be gathered: the kernels of a layer.
  """
  known = set(weights)
  return [
    c
    for c in collectives
    if (
      c.kind == 'all-gather' or (c.kind == 'all-reduce' and 'context' in c.axes)
    )
    and any(a.size >= elements and a.size not in known for a in c.arrays)
  ]


def torus_axes(coordinates: Sequence[Sequence[int]]) -> int:
  """Returns the number of axes of the torus along which devices differ."""
  return max(
    sum(len(set(along)) > 1 for along in zip(*coordinates, strict=True)), 1
  )


def collective_seconds(
  collective: hlo.Collective, chip: chips.Chip, *, axes: int, dcn: bool
) -> float:
  """Returns the seconds of all runs of a collective at the peak of the links.

  Assumes rings in both directions along each axis of the torus that the group
  spans. An all-to-all travels a quarter of a ring on average.
  Source: Austin et al. 2025, How to Scale Your Model, "Sharded matrices".

  Args:
    collective: the collective.
    chip: generation of the devices.
    axes: axes of the torus that the group spans.
    dcn: whether it crosses slices.
  """
  if dcn:
    return collective.count * collective.wire / chip.dcn
  if collective.kind == 'collective-permute':
    return collective.count * collective.wire / chip.link
  wire = collective.wire
  if collective.kind == 'all-to-all':
    wire *= max(collective.group ** (1 / axes) / 4, 1)
  return collective.count * wire / (2 * axes * chip.link)


def per_kind(
  collectives: Sequence[hlo.Collective],
) -> dict[tuple[str, str], tuple[int, float]]:
  """Returns (kind, dtype) -> (times, bytes of results) of one device."""
  totals: dict[tuple[str, str], tuple[int, float]] = {}
  for c in collectives:
    key = c.kind, '+'.join(sorted({a.dtype for a in c.arrays}))
    count, total = totals.get(key, (0, 0.0))
    totals[key] = count + c.count, total + c.count * c.bytes
  return dict(sorted(totals.items(), key=lambda item: -item[1][1]))


def layer_weights(
  shapes: Mapping[str, tuple[int, ...]], *, layers: int, tensor: int
) -> list[int]:
  """Returns the numbers of elements that a gather of parameters may have."""
  sizes = set()
  for name, shape in shapes.items():
    size = math.prod(shape)
    one = size // layers if '/blocks/' in name else size
    sizes |= {size, one, size // tensor, one // tensor}
  return sorted(sizes)
