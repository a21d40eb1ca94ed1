"""Roofline of a compiled program on a chip: memory, communication, time."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from spacetime.dryrun import hlo
from spacetime.sharding import chips

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_AMOUNT = r'(\d+(?:\.\d+)?)\s?([KMGT]?)i?B?'


@dataclasses.dataclass(frozen=True)
class Memory:
  """Memory of one device, in bytes.

  Attributes:
    rows: name -> bytes: the arguments by name, then activations and
      temporaries, results, the program.
    limit: bytes that a program may use.
    refusal: message of the compiler when it ran out of memory; '' if it did
      not.
  """

  rows: Mapping[str, float]
  limit: float
  refusal: str = ''

  @property
  def total(self) -> float:
    """Bytes of all rows; at least as many where the compiler gave up."""
    return sum(self.rows.values())

  @property
  def fits(self) -> bool:
    """Whether it compiled and stays within the limit."""
    return not self.refusal and self.total <= self.limit


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a step for each unit of a chip.

  Attributes:
    matrix: seconds of the matrix unit at its peak, for the executed FLOPs.
    measured: the same at the efficiency of published runs (calibration.py).
    hbm: seconds of memory traffic, at the peak.
    interconnect: seconds of collectives, at the peak.
    flops: model FLOPs of a device.
    peak: FLOP/s of a device.
    basis: where the efficiency comes from.
  """

  matrix: float
  measured: float
  hbm: float
  interconnect: float
  flops: float
  peak: float
  basis: str = ''

  @property
  def expected(self) -> float:
    """Seconds of a step: the slowest unit, the matrix unit as measured.

    The published runs communicate and move memory as well, beside their
    products: what does not overlap there is in their efficiency.
    """
    return max(self.measured, self.hbm, self.interconnect)

  @property
  def mfu(self) -> float:
    """Model FLOPs utilisation of the expected step; 0 where not counted."""
    return self.flops / (self.expected * self.peak) if self.expected else 0.0


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
  """A compiler's message that memory does not suffice.

  Attributes:
    message: its first line.
    used: bytes of the whole program, if the message has them.
    temporaries: bytes of temporaries alone, likewise.
    limit: bytes that there are, likewise.
    on_chip: whether a kernel exceeds the memory beside the units (VMEM, SMEM)
      and not the HBM.
  """

  message: str
  used: float | None = None
  temporaries: float | None = None
  limit: float | None = None
  on_chip: bool = False


# (amount needed, limit) of the whole program.
_USED = (
  rf'[Uu]sed {_AMOUNT} of {_AMOUNT}',
  rf'requires? {_AMOUNT}[^.]*? (?:exceeds|of|but)[^.]*? {_AMOUNT}',
  rf'[Rr]eserve {_AMOUNT} at the bottom of memory.*? {_AMOUNT} reservable',
)
# The same of temporaries.
_TEMPORARY = rf'temporaries \({_AMOUNT}\) exceeds [^(]*\({_AMOUNT}\)'


def parse_out_of_memory(message: str) -> OutOfMemory | None:
  """Reads a compiler's message; None if it is about something else."""
  text = message.lower()
  full = 'out of memory', 'resource_exhausted', 'out_of_memory', 'not enough'
  exceeds = 'exceed' in text and any(m in text for m in ('hbm', 'vmem', 'smem'))
  if not exceeds and not any(words in text for words in full):
    return None
  line = message.strip().partition('\n')[0][:300]
  on_chip = bool(re.search(r'\b(scoped )?(vmem|smem)\b', text))
  if on_chip and 'hbm' not in text:
    return OutOfMemory(line, on_chip=True)
  if match := re.search(_TEMPORARY, message):
    needed, limit = _amounts(match)
    return OutOfMemory(line, temporaries=needed, limit=limit)
  for pattern in _USED:
    if match := re.search(pattern, message, re.DOTALL):
      needed, limit = _amounts(match)
      return OutOfMemory(line, used=needed, limit=limit)
  return OutOfMemory(line)


def _amounts(match: re.Match) -> tuple[float, float]:
  """Bytes of the two amounts of a match."""
  one, unit, two, other = match.groups()
  return float(one) * _UNITS[unit], float(two) * _UNITS[other]


def advice(
  memory: Memory,
  *,
  mesh: Mapping[str, int],
  rows: int,
  fewer: str,
  remat: str | None,
  sharded: Sequence[str] = (),
) -> str:
  """Suggests what to change so that a program may fit.

  Args:
    memory: memory of a program that does not fit.
    mesh: devices along each axis.
    rows: rows of the batch that one device holds at once.
    fewer: settings that make them fewer; '' if none does.
    remat: model.remat; None of a program without a backward pass.
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
  if rows > 1 and fewer:
    return f'{rows} rows at once on a device: set {fewer}'
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
