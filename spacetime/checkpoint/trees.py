"""Trees of arrays by the paths of their leaves, wanted and saved."""

from collections.abc import Mapping
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from etils import epath

from spacetime import sharding
from spacetime.checkpoint.paths import Tree, damaged


def flat(tree: Tree) -> dict[str, Any]:
  """Leaves by their path, joined by '/'."""
  return {
    sharding.path_name(path): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def open_reader() -> ocp.Checkpointer:
  return ocp.Checkpointer(
    ocp.CompositeCheckpointHandler(
      state=ocp.PyTreeCheckpointHandler(),
      data=grain.checkpoint.CheckpointHandler(),
    )
  )


def saved_shapes(step: epath.Path) -> dict[str, tuple[int, ...]]:
  try:
    with open_reader() as reader:
      tree = reader.metadata(step).item_metadata['state'].tree
  except Exception as e:
    raise damaged(step, e) from e
  return {key: tuple(leaf.shape) for key, leaf in flat(tree).items()}


def with_shardings(abstract: Tree) -> Tree:
  """The first local device for leaves that name no sharding."""
  first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(
      a.shape, a.dtype, sharding=getattr(a, 'sharding', None) or first
    ),
    abstract,
  )


def check_tree(
  saved: Mapping[str, tuple[int, ...]], abstract: Tree, *, where: Any
) -> None:
  """Raises ValueError unless keys and shapes agree."""
  wanted = {key: tuple(leaf.shape) for key, leaf in flat(abstract).items()}
  shapes = [
    f'{key} {saved[key]}, expected {wanted[key]}'
    for key in sorted(saved.keys() & wanted.keys())
    if saved[key] != wanted[key]
  ]
  faults = {
    'missing': sorted(wanted.keys() - saved.keys()),
    'unexpected': sorted(saved.keys() - wanted.keys()),
    'other shapes': shapes,
  }
  told = []
  for name, keys in faults.items():
    if keys:
      more = f' and {len(keys) - 8} more' if len(keys) > 8 else ''
      told.append(f'{name}: {", ".join(keys[:8])}{more}')
  if told:
    raise ValueError(
      f'{where} is of another model; {"; ".join(told)}; change --checkpoint, '
      '--workdir or --config'
    )
