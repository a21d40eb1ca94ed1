"""Torch's layouts of tensors and the paths of parameter trees, in numpy."""

import re
from collections.abc import Iterable, Iterator

# Torch's kernels are (output channels, input channels, *space).
FROM_TORCH = {
  'same': lambda w: w,
  'linear': lambda w: w.T,
  'conv2': lambda w: w.transpose(2, 3, 1, 0),
  'conv3': lambda w: w.transpose(2, 3, 4, 1, 0),
  'point2': lambda w: w[:, :, 0, 0].T,
  'point3': lambda w: w[:, :, 0, 0, 0].T,
  'gain2': lambda w: w[:, 0, 0],
  'gain3': lambda w: w[:, 0, 0, 0],
}
TO_TORCH = {
  'same': lambda w: w,
  'linear': lambda w: w.T,
  'conv2': lambda w: w.transpose(3, 2, 0, 1),
  'conv3': lambda w: w.transpose(4, 3, 0, 1, 2),
  'point2': lambda w: w.T[:, :, None, None],
  'point3': lambda w: w.T[:, :, None, None, None],
  'gain2': lambda w: w[:, None, None],
  'gain3': lambda w: w[:, None, None, None],
}


# Modules of torch that wrap others, by their parts of a name.
_WRAPPER = re.compile(
  r'(?<![^.])_(?:orig_mod|(?:fsdp|checkpoint)_wrapped_module)\.'
)


def unwrapped(name: str) -> str:
  """The name of a tensor without torch's modules that wrap others."""
  return _WRAPPER.sub('', name)


def match(name: str, table) -> tuple[str, str]:
  """The target name and the layout of the first row that matches `name`.

  Raises:
    ValueError: no row matches.
  """
  for pattern, target, layout in table:
    row = re.fullmatch(pattern, name)
    if row:
      return row.expand(target), layout
  raise ValueError(
    f'tensor {name!r}: expected a name that matches one of {len(table)} '
    f'patterns, from {table[0][0]!r} to {table[-1][0]!r}; the file is of '
    'another model'
  )


def count(pattern: str, names: Iterable[str]) -> int:
  """The number of layers in names: 1 more than the largest group of `pattern`,
  and hardly more than there are names, however large a number one has."""
  matches = [re.match(pattern, name) for name in names]
  largest = max((int(match[1]) for match in matches if match), default=-1)
  return min(1 + largest, 1 + len(matches))


def put(tree: dict, path: list[str], value) -> None:
  """Sets a leaf, creating the dicts on its path."""
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def leaves(tree: dict, path: tuple[str, ...] = ()) -> Iterator:
  """Yields (path, leaf) of nested dicts."""
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from leaves(value, (*path, key))
    else:
      yield (*path, key), value
