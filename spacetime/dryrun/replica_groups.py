"""Which devices take part in a collective together, read from its text
(stdlib only).

Three forms: axes of a mesh, mesh['fsdp'=4,'axis_1'=2] {'fsdp'}; an iota,
[2,4]<=[4,2]T(1,0); lists, {{0,1},{2,3}}.
"""

import itertools
import math
import re


def read(text: str, mesh: dict[str, int]) -> tuple[int, tuple[str, ...]]:
  """(devices of a group, axes of the mesh along which they lie).

  Args:
    text: attributes of an instruction.
    mesh: devices along each axis, in the order in which they are numbered.

  Returns:
    no axes where the text does not tell them; those of the text itself where
    they are not the mesh's.
  """
  told = re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', text)
  if told:
    sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", told.group(1))}
    names, size, axes = _named(sizes, mesh), 1, []
    # 'axis_0':(2)4 is the part of axis_0 that has 2 before it, and 4.
    cut = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", told.group(2))
    for name, before, part in cut:
      part = int(part or sizes[name])
      size *= part
      axes += _part(names.get(name, (name,)), mesh, int(before or 1), part)
    return size, tuple(axes)
  told = re.search(
    r'replica_groups=\[(\d+),(\d+)\](?:<=\[([\d,]+)\](?:T\(([\d,]+)\))?)?', text
  )
  if told:
    _, size, sides, order = told.groups()
    first = _iota(_numbers(sides), _numbers(order))[: int(size)]
    return int(size), _along(first, mesh)
  told = re.search(r'replica_groups=\{\{([\d,]*)\}', text)
  if told:
    first = _numbers(told.group(1))
    return len(first), _along(first, mesh)
  if 'source_target_pairs' in text:
    return 2, ()
  return math.prod(mesh.values()) if mesh else 2, ()


def _numbers(text: str | None) -> list[int]:
  return [int(n) for n in (text or '').split(',') if n]


def _iota(sides: list[int], order: list[int]) -> list[int]:
  """Numbers of an array of these sides, its axes in another order."""
  steps = [math.prod(sides[i + 1 :]) for i in range(len(sides))]
  order = order or list(range(len(sides)))
  return [
    sum(at * steps[axis] for at, axis in zip(place, order, strict=True))
    for place in itertools.product(*(range(sides[axis]) for axis in order))
  ]


def _along(group: list[int], mesh: dict[str, int]) -> tuple[str, ...]:
  """Axes along which the devices of a group differ; none where it is not all
  of theirs."""
  found, step = [], math.prod(mesh.values())
  for axis, n in mesh.items():
    step //= n
    if len({device // step % n for device in group}) > 1:
      found.append(axis)
  whole = math.prod(mesh[axis] for axis in found) == len(group)
  return tuple(found) if whole else ()


def _part(axes, mesh: dict[str, int], before: int, size: int) -> list[str]:
  """Those of joined axes that have `before` devices before them, and `size`."""
  found, step = [], 1
  for axis in axes:
    if before <= step < before * size:
      found.append(axis)
    step *= mesh.get(axis, size)
  return found


def _named(
  sizes: dict[str, int], mesh: dict[str, int]
) -> dict[str, tuple[str, ...]]:
  """Axes of the text -> axes of the mesh: the compiler joins neighbours under
  names of its own, and leaves out those of one device."""
  rest = [(axis, n) for axis, n in mesh.items() if n > 1]
  found = {}
  for name, size in sizes.items():
    if name in mesh:
      found[name] = (name,)
      continue
    joined: tuple[str, ...] = ()
    while rest and size > 1 and size % rest[0][1] == 0:
      axis, n = rest.pop(0)
      joined, size = (*joined, axis), size // n
    if size > 1:  # it cut an axis: no name tells which part
      break
    found[name] = joined
  return found
