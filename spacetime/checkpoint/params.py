"""Reads the parameters of a work or weights directory."""

import jax
import safetensors
from etils import epath

from spacetime import sharding
from spacetime.checkpoint import finite, paths, trees
from spacetime.checkpoint.paths import STEPS, WEIGHTS, Path, Tree
from spacetime.media import files


def load_params(
  directory: Path,
  abstract: Tree,
  *,
  tree: str = 'ema',
  step: int | None = None,
  partial: bool = False,
) -> Tree:
  """Reads one tree of parameters, with the shardings of `abstract`.

  Args:
    directory: a work directory or a weights directory.
    abstract: tree of jax.ShapeDtypeStruct; leaves without a sharding are put
      on the first device, leaves of another dtype are cast.
    tree: part of a work directory's state, 'ema' or 'params'.
    step: step of a work directory; None for the latest.
    partial: whether `abstract` may have only some of the saved roots.

  Raises:
    ValueError: no checkpoint, a damaged one, or one of another model.
  """
  abstract = trees.with_shardings(abstract)
  path = check_params(
    directory, abstract, tree=tree, step=step, partial=partial
  )
  if path.name == WEIGHTS:
    return _load_safetensors(path, abstract)
  import orbax.checkpoint as ocp  # here: a weights folder does without it

  item = {tree: abstract}
  restore = ocp.args.PyTreeRestore(
    item=item,
    restore_args=ocp.checkpoint_utils.construct_restore_args(item),
    partial_restore=True,
  )
  try:
    with trees.open_reader() as reader:
      restored = reader.restore(path, ocp.args.Composite(state=restore))
      params = restored['state'][tree]
  except Exception as e:
    raise paths.damaged(path, e) from e
  _check_finite(params, path)
  return params


def check_params(
  directory: Path,
  abstract: Tree,
  *,
  tree: str = 'ema',
  step: int | None = None,
  partial: bool = False,
) -> epath.Path:
  """Checks the parameters as load_params does, and returns their path.

  Raises:
    ValueError: see load_params; damaged arrays are not detected.
  """
  path = paths.check_directory(directory)
  if (path / WEIGHTS).exists():
    where = path = path / WEIGHTS
    saved = {key: shape for key, (shape, _) in stored(directory).items()}
  else:
    path = path / STEPS
    path = path / str(paths.find_step(path, step))
    where, prefix = f'{path} ({tree})', f'{tree}/'
    saved = {
      key.removeprefix(prefix): shape
      for key, shape in trees.saved_shapes(path).items()
      if key.startswith(prefix)
    }
  if partial:
    roots = tuple(f'{root}/' for root in abstract)
    saved = {key: saved[key] for key in saved if key.startswith(roots)}
  trees.check_tree(saved, abstract, where=where)
  return path


def stored(directory: Path) -> dict[str, tuple[tuple[int, ...], str]]:
  """Shapes and dtypes ('F32', 'BF16', ...) in a weights directory, by path.

  Returns {} for a work directory, where all parameters are float32.

  Raises:
    ValueError: not a checkpoint, or a damaged one.
  """
  path = paths.check_directory(directory) / WEIGHTS
  if not path.exists():
    return {}
  with _open_safetensors(path) as file:
    slices = {key: file.get_slice(key) for key in file.keys()}
    return {
      key: (tuple(cut.get_shape()), cut.get_dtype())
      for key, cut in slices.items()
    }


def _open_safetensors(path: epath.Path):
  try:
    return safetensors.safe_open(files.local_copy(path), framework='numpy')
  except safetensors.SafetensorError as e:
    raise paths.damaged(path, e) from e


def _load_safetensors(path: epath.Path, abstract: Tree) -> Tree:
  with _open_safetensors(path) as file:

    def load(key_path, leaf):
      key = sharding.path_name(key_path)
      value = file.get_tensor(key).astype(leaf.dtype, copy=False)
      finite.check(value, f'{path}: {key}')
      return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: value[index]
      )

    return jax.tree_util.tree_map_with_path(load, abstract)


def _check_finite(params: Tree, path: epath.Path) -> None:
  """Checks this process's parts of the parameters."""
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
    for shard in leaf.addressable_shards:
      finite.check(shard.data, f'{path}: {sharding.path_name(key_path)}')
