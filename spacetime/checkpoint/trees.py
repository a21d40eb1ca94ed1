"""Trees of arrays: leaves by path, saved shapes and checks of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from etils import epath

from spacetime import sharding
from spacetime.checkpoint import mismatch
from spacetime.checkpoint.paths import Tree, damaged

if TYPE_CHECKING:  # imported where they are used: weights do without them
  import orbax.checkpoint as ocp


def flat(tree: Tree) -> dict[str, Any]:
  """Leaves by their path, joined by '/'."""
  return {
    sharding.path_name(path): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def open_reader() -> 'ocp.Checkpointer':
  """Returns a reader of checkpoints: state and data iterator."""
  import grain
  import orbax.checkpoint as ocp

  return ocp.Checkpointer(
    ocp.CompositeCheckpointHandler(
      state=ocp.PyTreeCheckpointHandler(),
      data=grain.checkpoint.CheckpointHandler(),
    )
  )


def saved_shapes(step: epath.Path) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every array of a checkpoint's state, by its path.

  Raises:
    ValueError: the checkpoint cannot be read.
  """
  try:
    with open_reader() as reader:
      tree = reader.metadata(step).item_metadata['state'].tree
  except Exception as e:
    raise damaged(step, e) from e
  return {key: tuple(leaf.shape) for key, leaf in flat(tree).items()}


def with_shardings(abstract: Tree) -> Tree:
  """Places leaves without a sharding on the first local device."""
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
  expected = {key: tuple(leaf.shape) for key, leaf in flat(abstract).items()}
  if text := mismatch.report(mismatch.compare(saved, expected), most=8):
    raise ValueError(f'{where} is of another model; {text}')
