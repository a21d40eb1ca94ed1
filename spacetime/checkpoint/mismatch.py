"""Reports parameters that are missing, unexpected or mis-shaped."""

import re
from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]


def compare(actual: Shapes, expected: Shapes) -> dict[str, list[str]]:
  """Compares shapes by name.

  Returns:
    Names by fault: 'missing', 'unexpected' and 'of other shapes', the last with
    both shapes. The lists are empty if all is as expected.
  """
  return {
    'missing': sorted(expected.keys() - actual.keys()),
    'unexpected': sorted(actual.keys() - expected.keys()),
    'of other shapes': [
      f'{name} {tuple(actual[name])}, expected {tuple(shape)}'
      for name, shape in expected.items()
      if name in actual and tuple(actual[name]) != tuple(shape)
    ],
  }


def sizes(shapes: Shapes, name: str, *, axes: int, where) -> tuple[int, ...]:
  """The shape of a tensor that the sizes of a network are inferred from.

  Args:
    shapes: shapes by name.
    name: the tensor.
    axes: number of its axes.
    where: the file, for the message.

  Raises:
    ValueError: another number of axes, or an axis of no values.
  """
  shape = tuple(shapes[name])
  if len(shape) != axes or not all(shape):
    raise ValueError(
      f'{where}: {name} {shape}: expected {axes} axes of 1 or more, from which '
      'the sizes of the network follow; it is damaged, or of another model'
    )
  return shape


def report(
  faults: Mapping[str, Iterable[str]], *, most: int | None = None
) -> str:
  """Formats faults as 'missing: a, b; unexpected: c'; '' without faults.

  Args:
    faults: names by fault.
    most: largest number of names per fault; None lists all.
  """
  return '; '.join(
    f'{fault}: {listed(names, most=most)}'
    for fault, names in faults.items()
    if names
  )


def listed(names: Iterable[str], *, most: int | None = None) -> str:
  """Joins names; names that differ only in their layer are merged."""
  layers = {}
  for name in sorted(names):
    layer = re.search(r'\b(?:blocks?|layers?)\.(\d+)\.', name)
    key = name, ''
    if layer:
      key = name[: layer.start(1)], name[layer.end(1) :]
    layers.setdefault(key, []).append(int(layer[1]) if layer else None)
  result = []
  for (head, tail), numbers in layers.items():
    if numbers == [None]:
      result.append(head)
    elif len(numbers) == 1:
      result.append(f'{head}{numbers[0]}{tail}')
    else:
      inside = ','.join(str(i) for i in sorted(numbers))
      if sorted(numbers) == list(range(min(numbers), max(numbers) + 1)):
        inside = f'{min(numbers)}-{max(numbers)}'
      result.append(f'{head}{{{inside}}}{tail}')
  if most is not None and len(result) > most:
    return f'{", ".join(result[:most])} and {len(result) - most} more'
  return ', '.join(result)
