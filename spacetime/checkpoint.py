"""What a run leaves on disk, and how it comes back. Knows no model.

A work directory, written while training:

  config.json  tokenizer.model
  checkpoints/STEP/{state,data}   by Orbax, whole or not there

A weights directory, for release:

  config.json  tokenizer.model  weights.safetensors

`read_config`, `read_tokenizer`, `load_params` and `weights_hash` take either.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy
from absl import logging
from etils import epath

CONFIG, TOKENIZER = 'config.json', 'tokenizer.model'
WEIGHTS, STEPS = 'weights.safetensors', 'checkpoints'

Path = str | os.PathLike
Tree = Any


class Checkpoints:
  """The numbered checkpoints of one work directory.

  Saving is asynchronous: the arrays are copied before `save` returns, so that
  the next step may donate them, and written behind it. A step appears whole or
  not at all; half-written ones are swept away here, and said so.

  Args:
    workdir: the run's directory; made if there is none.
    keep: how many of the newest steps stay.

  Raises:
    ValueError: the directory cannot be written, or keep is below 1.
  """

  def __init__(self, workdir: Path, *, keep: int = 3):
    if keep < 1:
      raise ValueError(f'keep={keep}: expected 1 or more; change train.keep')
    self.directory = _absolute(workdir) / STEPS
    check_writable(workdir)
    self.directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(self.directory.iterdir()):
      if path.is_dir() and not _is_whole(path):
        logging.warning('%s: half-written; removed', path)
        # Only a number that is not whole is Orbax's blind spot; its own
        # temporary directories it removes itself.
        if path.name.isdigit() and jax.process_index() == 0:
          path.rmtree()
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True
      ),
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def latest_step(self) -> int | None:
    """The newest whole step, None if there is none."""
    return self._manager.latest_step()

  def save(
    self,
    step: int,
    state: Tree,
    *,
    iterator: grain.DatasetIterator | None = None,
    wait: bool = False,
  ) -> None:
    """Saves the state and the place in the data; a step already there stands.

    Args:
      step: finished steps.
      state: a tree of jax arrays.
      iterator: of the loader; its place is taken before this returns.
      wait: until the step is on disk.

    Raises:
      ValueError: a later step is there already.
    """
    latest = self.latest_step()
    if latest is not None and step < latest:
      raise ValueError(
        f'step {step} comes before step {latest} in {self.directory}; go on '
        'from the latest step or change --workdir'
      )
    items = {'state': ocp.args.StandardSave(state)}
    if iterator is not None:
      items['data'] = grain.checkpoint.CheckpointSave(iterator)
    self._manager.save(step, args=ocp.args.Composite(**items))
    if wait:
      self.wait()

  def restore(
    self,
    abstract: Tree,
    *,
    iterator: grain.DatasetIterator | None = None,
    step: int | None = None,
  ) -> Tree:
    """The state, laid out on the mesh at hand; moves `iterator` to its place.

    Args:
      abstract: tree of jax.ShapeDtypeStruct with the shardings wanted.
      iterator: of an equal loader, on as many processes as saved it.
      step: None for the latest.

    Raises:
      ValueError: no such step, a damaged one, or one of another model.
    """
    step = _find_step(self.directory, step)
    path = self.directory / str(step)
    _check_tree(_saved_shapes(path), abstract, where=path)
    items = {'state': ocp.args.StandardRestore(_with_shardings(abstract))}
    if iterator is not None:
      name = f'process_{jax.process_index()}-of-{jax.process_count()}.json'
      if not (path / 'data' / name).exists():
        raise ValueError(
          f'{path} has no place in the data for process '
          f'{jax.process_index()} of {jax.process_count()}; resume on as many '
          'processes as saved it, or change --workdir'
        )
      items['data'] = grain.checkpoint.CheckpointRestore(iterator)
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**items))[
        'state'
      ]
    except Exception as e:
      raise _damaged(path, e) from e

  def wait(self) -> None:
    """Returns when all is on disk; raises what went wrong on the way."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and lets go."""
    self._manager.close()


# -- the work directory's config and tokenizer ---------------------------------


def write_config(
  workdir: Path,
  config: Mapping[str, Any],
  *,
  tokenizer: bytes | None = None,
  free: tuple[str, ...] = (),
) -> None:
  """Writes config.json and tokenizer.model, or checks those that are there.

  Args:
    workdir: the run's directory; made if there is none.
    config: plain values, nested.
    tokenizer: sentencepiece model.
    free: dotted keys, or parents of keys, that a resumed run may change.

  Raises:
    ValueError: the directory holds a run with another config or tokenizer, or
      cannot be written.
  """
  check_config(workdir, config, free=free)
  check_writable(workdir)
  directory = _absolute(workdir)
  path = directory / CONFIG
  config = json.loads(json.dumps(config))
  saved = directory / TOKENIZER
  if tokenizer is not None and saved.exists():
    if saved.read_bytes() != tokenizer:
      raise ValueError(
        f'{workdir} holds a run with another tokenizer; use the one there or '
        'change --workdir'
      )
  if jax.process_index() == 0:
    if tokenizer is not None:
      _write(saved, tokenizer)
    _write(path, _config_bytes(config))


def check_config(
  workdir: Path, config: Mapping[str, Any], *, free: tuple[str, ...] = ()
) -> None:
  """Raises ValueError if the directory holds a run with another config.

  Args:
    workdir: the run's directory, there or not.
    config: plain values, nested.
    free: dotted keys, or parents of keys, that a resumed run may change.
  """
  path = _absolute(workdir) / CONFIG
  if path.exists():  # maybe of a run that was stopped before its first save
    changes = {
      key: pair
      for key, pair in config_changes(_read_json(path), config).items()
      if not any(key == f or key.startswith(f + '.') for f in free)
    }
    if changes:
      lines = [f'{k}: {old!r} -> {new!r}' for k, (old, new) in changes.items()]
      raise ValueError(
        f'{workdir} holds a run with another config: {"; ".join(lines)}; '
        'restore these values or change --workdir'
      )


def config_changes(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  """Dotted keys whose values differ: (old, new); None where there is none."""
  old, new = (_flat_config(json.loads(json.dumps(c))) for c in (old, new))
  return {
    key: (old.get(key), new.get(key))
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  }


def read_config(directory: Path) -> dict[str, Any]:
  """The config beside a work directory's or a weights directory's arrays.

  Raises:
    ValueError: no such directory, or it holds neither.
  """
  return _read_json(_check_directory(directory) / CONFIG)


def _read_json(path: epath.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as e:
    raise ValueError(
      f'{path} is not JSON ({e}); change --checkpoint or --workdir'
    ) from e


def read_tokenizer(directory: Path) -> bytes:
  """The sentencepiece model beside the arrays.

  Raises:
    ValueError: no such directory, or no tokenizer in it.
  """
  path = _check_directory(directory) / TOKENIZER
  if not path.exists():
    raise ValueError(
      f'{directory} has no {TOKENIZER}; change --checkpoint or --workdir'
    )
  return path.read_bytes()


def has_step(workdir: Path) -> bool:
  """Whether the directory holds a whole checkpoint."""
  steps = _absolute(workdir) / STEPS
  return steps.exists() and any(_is_whole(path) for path in steps.iterdir())


# -- parameters alone ----------------------------------------------------------


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
  abstract = _with_shardings(abstract)
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
    with _reader() as reader:
      return reader.restore(path, ocp.args.Composite(state=restore))['state'][
        tree
      ]
  except Exception as e:
    raise _damaged(path, e) from e


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
  path = _check_directory(directory)
  if (path / WEIGHTS).exists():
    where = path = path / WEIGHTS
    saved = {key: shape for key, (shape, _) in stored(directory).items()}
  else:
    path = path / STEPS
    path = path / str(_find_step(path, step))
    where, prefix = f'{path} ({tree})', f'{tree}/'
    saved = {
      key.removeprefix(prefix): shape
      for key, shape in _saved_shapes(path).items()
      if key.startswith(prefix)
    }
  if not whole:
    roots = tuple(f'{root}/' for root in abstract)
    saved = {key: saved[key] for key in saved if key.startswith(roots)}
  _check_tree(saved, abstract, where=where)
  return path


def stored(directory: Path) -> dict[str, tuple[tuple[int, ...], str]]:
  """Shapes and dtypes ('F32', 'BF16', ...) in a weights directory, by path; {}
  of a work directory, whose parameters are all float32.

  Raises:
    ValueError: nothing there, or damaged.
  """
  path = _check_directory(directory) / WEIGHTS
  if not path.exists():
    return {}
  with _open_safetensors(path) as file:
    slices = {key: file.get_slice(key) for key in file.keys()}
    return {
      key: (tuple(cut.get_shape()), cut.get_dtype())
      for key, cut in slices.items()
    }


def save_weights(
  directory: Path,
  params: Mapping[str, Any],
  *,
  config: Mapping[str, Any],
  tokenizer: bytes | None = None,
) -> None:
  """Writes a weights directory, whole or not at all.

  Args:
    directory: where; may exist only if empty or equal.
    params: nested dicts of arrays, all of which this process can read.
    config: plain values, nested.
    tokenizer: sentencepiece model.

  Raises:
    ValueError: something else is there, or it cannot be written.
  """
  directory = pathlib.Path(os.path.abspath(directory))
  check_writable(directory.parent)
  files = {CONFIG: _config_bytes(config)}
  if tokenizer is not None:
    files[TOKENIZER] = tokenizer
  arrays = {
    key: np.ascontiguousarray(jax.device_get(value)).reshape(value.shape)
    for key, value in _flat(params).items()
  }
  files[WEIGHTS] = safetensors.numpy.save(arrays)
  if directory.exists():
    if not directory.is_dir() or (
      any(directory.iterdir()) and not _holds(directory, files)
    ):
      raise ValueError(
        f'{directory} exists and holds something else; change --out'
      )
  temporary = directory.with_name(f'.{directory.name}.{os.getpid()}.tmp')
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  try:
    for name, data in files.items():
      (temporary / name).write_bytes(data)
    if not directory.exists() or not any(directory.iterdir()):
      temporary.replace(directory)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def weights_hash(directory: Path, *, step: int | None = None) -> str:
  """Sixteen hex digits that name the arrays.

  The head of the SHA-256 of weights.safetensors; in a work directory that of
  the step's manifest, which no two saves share.
  """
  path = _check_directory(directory)
  if (path / WEIGHTS).exists():
    digest = hashlib.sha256()
    with (path / WEIGHTS).open('rb') as f:
      while block := f.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()[:16]
  path = path / STEPS
  step = path / str(_find_step(path, step))
  return hashlib.sha256(
    (step / '_CHECKPOINT_METADATA').read_bytes()
    + (step / 'state' / 'manifest.ocdbt').read_bytes()
  ).hexdigest()[:16]


def check_writable(directory: Path) -> None:
  """Makes the directory and a file in it.

  Raises:
    ValueError: it cannot.
  """
  directory = _absolute(directory)
  probe = directory / f'.probe.{jax.process_index()}.{os.getpid()}'
  try:
    directory.mkdir(parents=True, exist_ok=True)
    probe.write_text('')
    probe.unlink(missing_ok=True)
  except OSError as e:
    raise ValueError(
      f'{directory} cannot be written ({e.strerror}); change --workdir or --out'
    ) from e


# -- within --------------------------------------------------------------------


def _absolute(path: Path) -> epath.Path:
  path = os.fspath(path)
  if '://' not in path:
    path = os.path.abspath(os.path.expanduser(path))
  return epath.Path(path)


def _check_directory(directory: Path) -> epath.Path:
  """The path of a work or weights directory; ValueError for anything else."""
  path = _absolute(directory)
  change = 'change --checkpoint or --workdir'
  if not path.exists():
    raise ValueError(f'{directory} does not exist; {change}')
  if not path.is_dir():
    raise ValueError(
      f'{directory} is a file; expected the directory that holds it; {change}'
    )
  arrays = (path / WEIGHTS).exists() or (path / STEPS).exists()
  if not arrays or not (path / CONFIG).exists():
    raise ValueError(
      f'{directory} is not a checkpoint; expected {CONFIG} with {WEIGHTS} or '
      f'{STEPS}/; {change}'
    )
  return path


def _is_whole(step: epath.Path) -> bool:
  return (
    step.name.isdigit()
    and ocp.utils.is_checkpoint_finalized(step)
    and (step / '_CHECKPOINT_METADATA').exists()
    and (step / 'state' / '_METADATA').exists()
  )


def _find_step(directory: epath.Path, step: int | None) -> int:
  entries = list(directory.iterdir()) if directory.exists() else []
  whole = sorted(int(p.name) for p in entries if _is_whole(p))
  if not whole:
    half = f', only {len(entries)} half-written' if entries else ''
    raise ValueError(
      f'{directory} has no whole checkpoint{half}; change --checkpoint or '
      '--workdir'
    )
  if step is not None and step not in whole:
    raise ValueError(
      f'{directory} has no step {step}; expected one of {whole}; change '
      '--step, --checkpoint or --workdir'
    )
  return whole[-1] if step is None else step


def _damaged(path: Path, error: Exception) -> ValueError:
  return ValueError(
    f'{path} cannot be read ({type(error).__name__}: {str(error)[:200]}); it '
    'is damaged: remove it, or change --checkpoint or --workdir'
  )


def _flat(tree: Tree) -> dict[str, Any]:
  """Leaves by their path, joined by '/'."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def _flat_config(config: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(config, Mapping):
    return {prefix: config}
  flat = {}
  for key, value in config.items():
    flat |= _flat_config(value, f'{prefix}.{key}' if prefix else key)
  return flat


def _config_bytes(config: Mapping[str, Any]) -> bytes:
  return (json.dumps(config, indent=2, sort_keys=True) + '\n').encode()


def _write(path: epath.Path, data: bytes) -> None:
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  temporary.write_bytes(data)
  temporary.replace(path)


def _holds(directory: pathlib.Path, files: Mapping[str, bytes]) -> bool:
  return {p.name for p in directory.iterdir()} == set(files) and all(
    (directory / name).read_bytes() == data for name, data in files.items()
  )


def _reader() -> ocp.Checkpointer:
  return ocp.Checkpointer(
    ocp.CompositeCheckpointHandler(
      state=ocp.PyTreeCheckpointHandler(),
      data=grain.checkpoint.CheckpointHandler(),
    )
  )


def _saved_shapes(step: epath.Path) -> dict[str, tuple[int, ...]]:
  try:
    with _reader() as reader:
      tree = reader.metadata(step).item_metadata['state'].tree
  except Exception as e:
    raise _damaged(step, e) from e
  return {key: tuple(leaf.shape) for key, leaf in _flat(tree).items()}


def _with_shardings(abstract: Tree) -> Tree:
  """The first local device for leaves that name no sharding."""
  first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(
      a.shape, a.dtype, sharding=getattr(a, 'sharding', None) or first
    ),
    abstract,
  )


def _check_tree(
  saved: Mapping[str, tuple[int, ...]], abstract: Tree, *, where: Any
) -> None:
  """Raises ValueError unless keys and shapes agree."""
  wanted = {key: tuple(leaf.shape) for key, leaf in _flat(abstract).items()}
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


def _open_safetensors(path: epath.Path):
  try:
    return safetensors.safe_open(os.fspath(path), framework='numpy')
  except safetensors.SafetensorError as e:
    raise _damaged(path, e) from e


def _load_safetensors(path: epath.Path, abstract: Tree) -> Tree:
  with _open_safetensors(path) as file:

    def load(key_path, leaf):
      key = jax.tree_util.keystr(key_path, simple=True, separator='/')
      value = file.get_tensor(key).astype(leaf.dtype, copy=False)
      return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: value[index]
      )

    return jax.tree_util.tree_map_with_path(load, abstract)
