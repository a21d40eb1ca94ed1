"""Parses the text of a compiled program: collectives, kernels, traffic.

XLA's own counts see the body of a loop once and no kernels. Here an instruction
in a loop counts as often as the loop runs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from spacetime.dryrun import replica_groups

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
)
# Instructions without memory traffic: names, tuples, ends of async operations.
_FREE = {
  *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'),
  *('after-all', 'while', 'conditional', 'call', 'partition-id', 'iota'),
  *('opt-barrier', 'async-start', 'async-update', 'async-done'),
  *('call-start', 'call-update', 'custom-call-start', 'custom-call-update'),
}
_HEAD = re.compile(r'^(ENTRY )?%(\S+) \(')
_LINE = re.compile(r'^\s+(?:ROOT )?%(\S+) = ')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')
_CALLED = re.compile(
  r'\b(?:calls|to_apply|body|called_computation)=%([\w.\-]+)'
)
# Branches of a conditional; computations of another core.
_LISTED = re.compile(r'(?:branch|called)_computations=\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Array:
  """An array of a result: dtype, dimensions, and whether it is in HBM."""

  dtype: str
  shape: tuple[int, ...]
  hbm: bool = True

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  @property
  def bytes(self) -> float:
    """Bytes, without padding of the layout."""
    bits = re.search(r'\d+', self.dtype)
    if self.dtype == 'pred':
      return float(self.size)
    return self.size * (int(bits.group()) / 8 if bits else 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction.

  Attributes:
    name: its name without '%'.
    op: its operation, such as 'fusion'.
    arrays: arrays of its result.
    operands: names of its operands.
    rest: its attributes, as text.
  """

  name: str
  op: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  rest: str


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective operation.

  Attributes:
    kind: one of COLLECTIVES.
    arrays: results on each device.
    group: number of devices that communicate with each other.
    axes: mesh axes of the group, if the text has them.
    count: number of runs in the program.
    scope: position in the source.
  """

  kind: str
  arrays: tuple[Array, ...]
  group: int
  axes: tuple[str, ...]
  count: int
  scope: str

  @property
  def bytes(self) -> float:
    """Bytes of the result of one run."""
    return sum(array.bytes for array in self.arrays)

  @property
  def wire(self) -> float:
    """Bytes that a device sends in one run, by the best algorithm on a ring."""
    part = (self.group - 1) / self.group
    if self.kind == 'all-reduce':
      return 2 * part * self.bytes
    if self.kind == 'reduce-scatter':  # its result is a shard already
      return (self.group - 1) * self.bytes
    if self.kind == 'collective-permute':
      return self.bytes
    return part * self.bytes


class Program:
  """A parsed compiled program."""

  def __init__(self, text: str):
    self.bodies: dict[str, list[Instruction]] = {}
    self.entry = ''
    body = None
    for line in text.splitlines():
      head = _HEAD.match(line)
      if head:
        body = self.bodies.setdefault(head.group(2), [])
        self.entry = head.group(2) if head.group(1) else self.entry
      elif body is not None and _LINE.match(line):
        body.append(_instruction(line))
    if not self.entry:
      raise ValueError('expected the text of a compiled program, with an ENTRY')
    # Only computations that are called count, as often as they are called.
    self.times: dict[str, int] = {}
    self.rounds: dict[str, int] = {}
    self._walk(self.entry, 1, 1)

  def _walk(self, name: str, times: int, rounds: int) -> None:
    self.times[name] = self.times.get(name, 0) + times
    self.rounds[name] = rounds
    for at in self.bodies.get(name, ()):
      trips = self.trips(at) if at.op == 'while' else 1
      inner = trips if at.op == 'while' else rounds
      called = _CALLED.findall(at.rest)
      for listed in _LISTED.findall(at.rest):
        called += re.findall(r'%([\w.\-]+)', listed)
      for other in called:
        self._walk(other, times * trips, inner)

  def trips(self, loop: Instruction) -> int:
    """Returns the number of iterations of a loop, from its condition."""
    known = re.search(r'known_trip_count\\?"?:\{\\?"n\\?":\\?"(\d+)', loop.rest)
    if known:
      return int(known.group(1))
    condition = re.search(r'condition=%([\w.\-]+)', loop.rest).group(1)
    constants = [
      int(at.rest.partition(')')[0].partition('(')[2] or 0)
      for at in self._inside(condition)
      if at.op == 'constant' and at.arrays[0].shape == ()
    ]
    return max([n for n in constants if n > 0], default=1)

  def _inside(self, name: str) -> Iterator[Instruction]:
    for at in self.bodies.get(name, ()):
      yield at
      for other in _CALLED.findall(at.rest):
        yield from self._inside(other)

  def instructions(self) -> Iterator[tuple[Instruction, int, str]]:
    """Yields (instruction, number of runs, name of its computation)."""
    for name, times in self.times.items():
      for at in self.bodies.get(name, ()):
        yield at, times, name

  def collectives(self, mesh: dict[str, int] | None = None) -> list[Collective]:
    """Returns all collectives; asynchronous ones count once.

    Args:
      mesh: devices along each axis.
    """
    collectives = []
    for at, times, _ in self.instructions():
      kind = at.op.removesuffix('-start')
      if kind not in COLLECTIVES:
        continue
      arrays = at.arrays
      if at.op.endswith('-start') and kind != 'all-reduce':
        # (operands, results, flags)
        arrays = [a for a in arrays if a.shape]
        arrays = tuple(arrays[len(arrays) // 2 :])
      group, axes = replica_groups.read(at.rest, mesh or {})
      if group > 1 or kind == 'collective-permute':
        collectives.append(
          Collective(kind, arrays, max(group, 2), axes, times, scope(at))
        )
    return collectives

  def kernels(self) -> dict[str, int]:
    """Returns the number of runs of each Pallas kernel by name."""
    counts: dict[str, int] = {}
    for at, times, _ in self.instructions():
      if at.op == 'custom-call' and 'tpu_custom_call' in at.rest:
        name = re.sub(r'(\.(\d+|clone|remat\d*))+$', '', at.name)
        counts[name] = counts.get(name, 0) + times
    return counts

  def memory_traffic(self) -> float:
    """Returns a lower bound of the bytes between HBM and the cores.

    Every result is written once and every operand read once. Of arrays that are
    stacked over the iterations of a loop, an iteration reads its slice. Kernels
    may read more than once.
    """
    fused = {
      name
      for body in self.bodies.values()
      for at in body
      if at.op == 'fusion' or _applied(at)
      for name in _CALLED.findall(at.rest)
    }
    total = 0.0
    for name, times in self.times.items():
      if name in fused:
        continue
      here = {at.name: at for at in self.bodies.get(name, ())}
      rounds = self.rounds[name]
      for at in here.values():
        if at.op in _FREE or at.op.endswith('-done'):
          continue
        arrays = [*at.arrays]
        for operand in at.operands:
          arrays += here[operand].arrays if operand in here else ()
        total += times * sum(
          a.bytes / (rounds if a.shape[:1] == (rounds,) else 1)
          for a in arrays
          if a.hbm
        )
    return total


def scope(at: Instruction) -> str:
  """Returns the position of an instruction in the source."""
  match = re.search(r'op_name="([^"]*)"', at.rest)
  return match.group(1) if match else ''


def _applied(at: Instruction) -> bool:
  """Whether an instruction applies a scalar function, such as a sum."""
  return 'to_apply=' in at.rest and not at.op.startswith('call')


def _instruction(line: str) -> Instruction:
  match = _LINE.match(line)
  rest = line[match.end() :]
  end = _closing(rest, 0) if rest.startswith('(') else rest.find(' ')
  kinds, rest = rest[:end], rest[end:].lstrip()
  op, _, _ = rest.partition('(')
  if op == 'constant':  # the operand is the value
    return Instruction(match.group(1), op, _arrays(kinds), (), rest)
  end = _closing(rest, len(op))
  operands = tuple(re.findall(r'%([\w.\-]+)', rest[len(op) : end]))
  return Instruction(match.group(1), op, _arrays(kinds), operands, rest[end:])


def _closing(text: str, start: int) -> int:
  """Returns the index after the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i + 1
  return len(text)


def _arrays(text: str) -> tuple[Array, ...]:
  """Parses arrays; memory spaces other than 0 (S(1), ...) are not HBM."""
  return tuple(
    Array(
      dtype,
      tuple(int(n) for n in shape.split(',') if n),
      not re.search(r'S\([1-9]', layout),
    )
    for dtype, shape, layout in _ARRAY.findall(text)
  )
