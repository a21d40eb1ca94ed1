"""Parameters alone, of a work directory or of a weights directory."""

import os

import jax
import orbax.checkpoint as ocp
import safetensors
from etils import epath

from spacetime import sharding
from spacetime.checkpoint import paths, trees
from spacetime.checkpoint.paths import STEPS, WEIGHTS, Path, Tree


def load_params(
  directory: Path,
  abstract: Tree,
  *,
  tree: str = 'ema',
  step: int | None = None,
  whole: bool = True,
) -> Tree:
  """One tree of parameters, and nothing else, laid out as `abstract` says.

  Args:
    directory: a work directory or a weights directory.
    abstract: tree of jax.ShapeDtypeStruct; a leaf without a sharding goes to
      the first device, one of another dtype is cast.
    tree: which part of a work directory's state: 'ema' or 'params'.
    step: of a work directory; None for the latest.
    whole: False where `abstract` has only some of the roots that are saved.

  Raises:
    ValueError: no checkpoint there, a damaged one, or one of another model.
  """
  abstract = trees.with_shardings(abstract)
  path = check_params(directory, abstract, tree=tree, step=step, whole=whole)
  if path.name == WEIGHTS:
    return _load_safetensors(path, abstract)
  item = {tree: abstract}
  restore = ocp.args.PyTreeRestore(
    item=item,
    restore_args=ocp.checkpoint_utils.construct_restore_args(item),
    partial_restore=True,
  )
  try:
    with trees.open_reader() as reader:
      return reader.restore(path, ocp.args.Composite(state=restore))['state'][
        tree
      ]
  except Exception as e:
    raise paths.damaged(path, e) from e


def check_params(
  directory: Path,
  abstract: Tree,
  *,
  tree: str = 'ema',
  step: int | None = None,
  whole: bool = True,
) -> epath.Path:
  """Where load_params finds these parameters; reads none of them.

  Raises:
    ValueError: as load_params, but for arrays that turn out damaged.
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
  if not whole:
    roots = tuple(f'{root}/' for root in abstract)
    saved = {key: saved[key] for key in saved if key.startswith(roots)}
  trees.check_tree(saved, abstract, where=where)
  return path


def stored(directory: Path) -> dict[str, tuple[tuple[int, ...], str]]:
  """Shapes and dtypes ('F32', 'BF16', ...) in a weights directory, by path; {}
  of a work directory, whose parameters are all float32.

  Raises:
    ValueError: nothing there, or damaged.
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
    return safetensors.safe_open(os.fspath(path), framework='numpy')
  except safetensors.SafetensorError as e:
    raise paths.damaged(path, e) from e


def _load_safetensors(path: epath.Path, abstract: Tree) -> Tree:
  with _open_safetensors(path) as file:

    def load(key_path, leaf):
      key = sharding.path_name(key_path)
      value = file.get_tensor(key).astype(leaf.dtype, copy=False)
      return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: value[index]
      )

    return jax.tree_util.tree_map_with_path(load, abstract)
