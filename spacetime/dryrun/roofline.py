"""What a compiled program means for a chip: memory, exchanges, time."""

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
  """What lives on one device, in bytes.

  Attributes:
    rows: what -> bytes: the arguments by their names, then 'activations and
      temporaries', 'program'.
    limit: what a program may use.
    told: the compiler's own sum where it refused; None where it did not.
  """

  rows: Mapping[str, float]
  limit: float
  told: float | None = None

  @property
  def total(self) -> float:
    """All of it."""
    return self.told or sum(self.rows.values())

  @property
  def fits(self) -> bool:
    """Whether the compiler took it and it is within the limit."""
    return self.told is None and self.total <= self.limit


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a step, were each part alone at its peak.

  Attributes:
    matrix: of the matrix unit, for what is executed.
    hbm: of memory.
    interconnect: of exchanges between devices.
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
    """Where all three run beside each other."""
    return max(self.matrix, self.hbm, self.interconnect)

  @property
  def serial(self) -> float:
    """Where exchanges hide behind nothing."""
    return max(self.matrix, self.hbm) + self.interconnect

  def mfu(self, seconds: float) -> float:
    """Model FLOPs utilisation of a step that takes so long."""
    return self.flops / (seconds * self.peak) if seconds else 0.0


def refused(message: str) -> tuple[float, float] | None:
  """(bytes used, bytes there are) of a compiler's message that memory ran out;
  None if it says something else."""
  if 'hbm' not in message.lower():
    return None
  found = re.search(rf'[Uu]sed {_AMOUNT} of {_AMOUNT} hbm', message)
  if not found:
    return None
  used, unit, there, of = found.groups()
  return float(used) * _UNITS[unit], float(there) * _UNITS[of]


def advice(
  memory: Memory,
  *,
  mesh: Mapping[str, int],
  rows: int,
  remat: str,
  moved: Sequence[str] = (),
) -> str:
  """What to change so that a program may fit.

  Args:
    memory: that does not fit.
    mesh: devices along each axis.
    rows: of the batch that one device holds at once.
    remat: of the config.
    moved: names of the rows that are sharded with the parameters.
  """
  state = sum(memory.rows.get(name, 0.0) for name in moved)
  if state > 0.6 * memory.limit:
    if mesh['data'] > 1:
      return (
        f'the state takes most of it: move mesh.data={mesh["data"]} to '
        f'mesh.fsdp (now {mesh["fsdp"]})'
      )
    return 'the state takes most of it: take a slice of more chips'
  if remat == 'none':
    return "activations take most of it: model.remat='attention'"
  if rows > 1:
    return (
      f'{rows} clips at once on a device: train.accumulate={rows}, or a '
      'smaller data.batch_size'
    )
  if mesh['data'] * mesh['fsdp'] > 1:
    return (
      f'activations of one clip take most of it: mesh.context='
      f'{2 * mesh["context"]} (now {mesh["context"]}) with half of mesh.data '
      'or mesh.fsdp'
    )
  if remat == 'attention':
    return "activations take most of it: model.remat='full' or 'offload'"
  return 'take a slice of more chips'


def whole_activations(
  collectives: Sequence[hlo.Collective],
  *,
  elements: int,
  weights: Sequence[int],
) -> list[hlo.Collective]:
  """Exchanges that make an activation whole which the mesh had split: gathers,
  and sums over mesh.context, as which the compiler may write them (a sum over
  mesh.tensor is that of a product).

  Args:
    collectives: of the program.
    elements: of a whole activation of one clip, N D over mesh.tensor.
    weights: elements of what may be gathered whole: the kernels of a layer.
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


def sides(coordinates: Sequence[Sequence[int]]) -> int:
  """Along how many axes of the torus devices differ: links that they share."""
  return max(
    sum(len(set(along)) > 1 for along in zip(*coordinates, strict=True)), 1
  )


def exchange_seconds(
  collective: hlo.Collective, chip: chips.Chip, *, axes: int, dcn: bool
) -> float:
  """Seconds of a collective, all its times, at the peak of the links.

  Rings in both directions along each axis of the torus that the group lies
  on. What is exchanged all to all travels a quarter of a ring on average.
  Source: Austin et al. 2025, How to Scale Your Model, "Sharded matrices".

  Args:
    collective: of the program.
    chip: the generation.
    axes: of the torus that the group spans.
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
  """(kind, dtype) -> (times, bytes of results) in a step, on one device."""
  found: dict[tuple[str, str], tuple[int, float]] = {}
  for c in collectives:
    key = c.kind, '+'.join(sorted({a.dtype for a in c.arrays}))
    count, total = found.get(key, (0, 0.0))
    found[key] = count + c.count, total + c.count * c.bytes
  return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def layer_weights(
  shapes: Mapping[str, tuple[int, ...]], *, layers: int, tensor: int
) -> list[int]:
  """Elements that a gather of parameters may have, by their paths."""
  sizes = set()
  for name, shape in shapes.items():
    size = math.prod(shape)
    one = size // layers if '/blocks/' in name else size
    sizes |= {size, one, size // tensor, one // tensor}
  return sorted(sizes)
