"""What a compiled program does, read from its scheduled text.

XLA's own counts see the body of a loop once and no kernels, so the text is
walked here: what a loop holds counts as often as the loop runs.
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
# No work of their own: names, tuples, the ends of what has begun elsewhere.
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
# Of a conditional; of a custom call that another core carries out.
_LISTED = re.compile(r'(?:branch|called)_computations=\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Array:
  """An array of a result: its dtype, dimensions, and whether in HBM."""

  dtype: str
  shape: tuple[int, ...]
  hbm: bool = True

  @property
  def size(self) -> int:
    """Elements."""
    return math.prod(self.shape)

  @property
  def bytes(self) -> float:
    """In memory, without what a layout adds."""
    bits = re.search(r'\d+', self.dtype)
    if self.dtype == 'pred':
      return float(self.size)
    return self.size * (int(bits.group()) / 8 if bits else 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line.

  Attributes:
    name: without '%'.
    op: such as 'fusion'.
    arrays: of its result.
    operands: names.
    rest: attributes, as text.
  """

  name: str
  op: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  rest: str


@dataclasses.dataclass(frozen=True)
class Collective:
  """What devices exchange, in one instruction.

  Attributes:
    kind: of COLLECTIVES.
    arrays: what each device holds after it.
    group: devices that take part together.
    axes: of the mesh, where the text tells them.
    count: times in the program.
    scope: where in the source it comes from.
  """

  kind: str
  arrays: tuple[Array, ...]
  group: int
  axes: tuple[str, ...]
  count: int
  scope: str

  @property
  def bytes(self) -> float:
    """Of the result, once."""
    return sum(array.bytes for array in self.arrays)

  @property
  def wire(self) -> float:
    """Bytes that a device sends, once, by the best algorithm on a ring."""
    part = (self.group - 1) / self.group
    if self.kind == 'all-reduce':
      return 2 * part * self.bytes
    if self.kind == 'reduce-scatter':  # its result is a part already
      return (self.group - 1) * self.bytes
    if self.kind == 'collective-permute':
      return self.bytes
    return part * self.bytes


class Program:
  """The text of a compiled program."""

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
    # Only what is reached counts, as often as it is reached.
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
    """How often a loop runs: what its condition counts up to."""
    known = re.search(r'known_trip_count\\?"?:\{\\?"n\\?":\\?"(\d+)', loop.rest)
    if known:
      return int(known.group(1))
    condition = re.search(r'condition=%([\w.\-]+)', loop.rest).group(1)
    found = [
      int(at.rest.partition(')')[0].partition('(')[2] or 0)
      for at in self._inside(condition)
      if at.op == 'constant' and at.arrays[0].shape == ()
    ]
    return max([n for n in found if n > 0], default=1)

  def _inside(self, name: str) -> Iterator[Instruction]:
    for at in self.bodies.get(name, ()):
      yield at
      for other in _CALLED.findall(at.rest):
        yield from self._inside(other)

  def instructions(self) -> Iterator[tuple[Instruction, int, str]]:
    """(instruction, times it runs, where it stands)."""
    for name, times in self.times.items():
      for at in self.bodies.get(name, ()):
        yield at, times, name

  def collectives(self, mesh: dict[str, int] | None = None) -> list[Collective]:
    """Every exchange between devices; the ends of asynchronous ones are not
    counted again."""
    found = []
    for at, times, _ in self.instructions():
      kind = at.op.removesuffix('-start')
      if kind not in COLLECTIVES:
        continue
      arrays = at.arrays
      if at.op.endswith('-start') and kind != 'all-reduce':
        # (what goes in, what comes out, flags)
        arrays = [a for a in arrays if a.shape]
        arrays = tuple(arrays[len(arrays) // 2 :])
      group, axes = replica_groups.read(at.rest, mesh or {})
      if group > 1 or kind == 'collective-permute':
        found.append(
          Collective(kind, arrays, max(group, 2), axes, times, scope(at))
        )
    return found

  def kernels(self) -> dict[str, int]:
    """Times that each kernel of Pallas runs, by its name in the source."""
    found: dict[str, int] = {}
    for at, times, _ in self.instructions():
      if at.op == 'custom-call' and 'tpu_custom_call' in at.rest:
        name = re.sub(r'(\.(\d+|clone|remat\d*))+$', '', at.name)
        found[name] = found.get(name, 0) + times
    return found

  def memory_traffic(self) -> float:
    """Bytes between HBM and the cores, at least: every result written once and
    every operand read once. Of what a loop carries for all its rounds, a round
    takes its slice. A kernel may read more than once."""
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
        moved = [*at.arrays]
        for operand in at.operands:
          moved += here[operand].arrays if operand in here else ()
        total += times * sum(
          a.bytes / (rounds if a.shape[:1] == (rounds,) else 1)
          for a in moved
          if a.hbm
        )
    return total


def scope(at: Instruction) -> str:
  """Where in the source an instruction comes from."""
  found = re.search(r'op_name="([^"]*)"', at.rest)
  return found.group(1) if found else ''


def _applied(at: Instruction) -> bool:
  """Whether what it calls is a function of numbers, such as a sum."""
  return 'to_apply=' in at.rest and not at.op.startswith('call')


def _instruction(line: str) -> Instruction:
  match = _LINE.match(line)
  rest = line[match.end() :]
  end = _closing(rest, 0) if rest.startswith('(') else rest.find(' ')
  kinds, rest = rest[:end], rest[end:].lstrip()
  op, _, _ = rest.partition('(')
  if op == 'constant':  # its operand is its value
    return Instruction(match.group(1), op, _arrays(kinds), (), rest)
  end = _closing(rest, len(op))
  operands = tuple(re.findall(r'%([\w.\-]+)', rest[len(op) : end]))
  return Instruction(match.group(1), op, _arrays(kinds), operands, rest[end:])


def _closing(text: str, start: int) -> int:
  """The place after the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i + 1
  return len(text)


def _arrays(text: str) -> tuple[Array, ...]:
  """Memory spaces other than 0 (S(1), S(2), ...) are not HBM."""
  return tuple(
    Array(
      dtype,
      tuple(int(n) for n in shape.split(',') if n),
      not re.search(r'S\([1-9]', layout),
    )
    for dtype, shape, layout in _ARRAY.findall(text)
  )
