"""Parses the replica groups of a collective (stdlib only).

There are three forms: axes of a mesh, mesh['fsdp'=4,'axis_1'=2] {'fsdp'}; an
iota, [2,4]<=[4,2]T(1,0); lists, {{0,1},{2,3}}.
"""

import itertools
import math
import re


def read(text: str, mesh: dict[str, int]) -> tuple[int, tuple[str, ...]]:
  """Returns (devices in a group, mesh axes along which they differ).

  Args:
    text: attributes of an instruction.
    mesh: devices along each axis, in the order of their numbers.

  Returns:
    no axes if the text does not determine them; the text's own names if they
    are not axes of the mesh.
  """
  match = re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', text)
  if match:
    sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", match.group(1))}
    names, size, axes = _named(sizes, mesh), 1, []
    # 'axis_0':(2)4 is the part of axis_0 that has 2 before it, and 4.
    cut = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match.group(2))
    for name, before, part in cut:
      part = int(part or sizes[name])
      size *= part
      axes += _part(names.get(name, (name,)), mesh, int(before or 1), part)
    return size, tuple(axes)
  match = re.search(
    r'replica_groups=\[(\d+),(\d+)\](?:<=\[([\d,]+)\](?:T\(([\d,]+)\))?)?', text
  )
  if match:
    _, size, sides, order = match.groups()
    first = _iota(_numbers(sides), _numbers(order))[: int(size)]
    return int(size), _along(first, mesh)
  match = re.search(r'replica_groups=\{\{([\d,]*)\}', text)
  if match:
    first = _numbers(match.group(1))
    return len(first), _along(first, mesh)
  if 'source_target_pairs' in text:
    return 2, ()
  return math.prod(mesh.values()) if mesh else 2, ()


def _numbers(text: str | None) -> list[int]:
  return [int(n) for n in (text or '').split(',') if n]


def _iota(sides: list[int], order: list[int]) -> list[int]:
  """Returns the numbers of an array of these sides with permuted axes."""
  steps = [math.prod(sides[i + 1 :]) for i in range(len(sides))]
  order = order or list(range(len(sides)))
  return [
    sum(i * steps[axis] for i, axis in zip(index, order, strict=True))
    for index in itertools.product(*(range(sides[axis]) for axis in order))
  ]


def _along(group: list[int], mesh: dict[str, int]) -> tuple[str, ...]:
  """Returns the axes along which the devices of a group differ; none if the
  group is only a part of the devices along them."""
  axes, step = [], math.prod(mesh.values())
  for axis, n in mesh.items():
    step //= n
    if len({device // step % n for device in group}) > 1:
      axes.append(axis)
  complete = math.prod(mesh[axis] for axis in axes) == len(group)
  return tuple(axes) if complete else ()


def _part(axes, mesh: dict[str, int], before: int, size: int) -> list[str]:
  """Returns those of joined axes after `before` devices, of `size` in all."""
  part, step = [], 1
  for axis in axes:
    if before <= step < before * size:
      part.append(axis)
    step *= mesh.get(axis, size)
  return part


def _named(
  sizes: dict[str, int], mesh: dict[str, int]
) -> dict[str, tuple[str, ...]]:
  """Maps axes of the text to axes of the mesh: the compiler joins neighbouring
  axes under names of its own and omits axes of one device."""
  rest = [(axis, n) for axis, n in mesh.items() if n > 1]
  names = {}
  for name, size in sizes.items():
    if name in mesh:
      names[name] = (name,)
      continue
    joined: tuple[str, ...] = ()
    while rest and size > 1 and size % rest[0][1] == 0:
      axis, n = rest.pop(0)
      joined, size = (*joined, axis), size // n
    if size > 1:  # it split an axis, and no name says which part
      break
    names[name] = joined
  return names
