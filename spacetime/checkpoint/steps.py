"""The numbered checkpoints of a run."""

import json

import grain
import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from spacetime import SettingError
from spacetime.checkpoint import paths, trees
from spacetime.checkpoint.paths import STEPS, Path, Tree
from spacetime.media import files


class Checkpoints:
  """The numbered checkpoints of one work directory.

  Saving is asynchronous: the arrays are copied before `save` returns, so that
  the next step may donate them, and written in the background. A step appears
  complete or not at all; half-written ones are removed here, with a warning.

  Args:
    workdir: the run's directory, created if it does not exist.
    keep: number of newest steps to keep.

  Raises:
    ValueError: the directory cannot be written, or keep is below 1.
  """

  def __init__(self, workdir: Path, *, keep: int = 3):
    if keep < 1:
      raise SettingError('train.keep', keep, '1 or more')
    self.directory = paths.absolute(workdir) / STEPS
    files.check_writable(workdir)
    self.directory.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      self._sweep()
    if jax.process_count() > 1:  # no process looks before the removal
      multihost_utils.sync_global_devices('swept')
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True
      ),
    )

  def _sweep(self) -> None:
    # In a bucket an empty folder is none.
    there = self.directory.exists()
    for path in sorted(self.directory.iterdir()) if there else ():
      if path.is_dir() and not paths.is_complete(path):
        logging.warning('%s: half-written; removed', path)
        # Orbax removes its own temporary directories, but not an incomplete
        # step under its number.
        if path.name.isdigit():
          path.rmtree()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, *exception) -> None:
    # Closing waits for all processes, of which one may have ended.
    if kind is None or jax.process_count() == 1:
      self.close()

  def latest_step(self) -> int | None:
    """The newest complete step; None if there is none."""
    return self._manager.latest_step()

  def save(
    self,
    step: int,
    state: Tree,
    *,
    iterator: grain.DatasetIterator | None = None,
    wait: bool = False,
  ) -> None:
    """Saves the state and the position in the data; an existing step stays.

    Args:
      step: number of finished steps.
      state: a tree of jax arrays.
      iterator: iterator of the loader; its position is saved before this
        returns.
      wait: whether to wait until the step is on disk.

    Raises:
      ValueError: a later step is there already.
      OSError: this step, or the one before it, could not be written.
    """
    latest = self.latest_step()
    if latest is not None and step < latest:
      raise ValueError(
        f'step {step} comes before step {latest} in {self.directory}; '
        'continue from the latest step'
      )
    items = {'state': ocp.args.StandardSave(state)}
    if iterator is not None:
      items['data'] = grain.checkpoint.CheckpointSave(iterator)
    try:
      self._manager.save(step, args=ocp.args.Composite(**items))
    except Exception as e:  # of this save, or of the one before it
      raise self._failed(e) from e
    if wait:
      self.wait()

  def restore(
    self,
    abstract: Tree,
    *,
    iterator: grain.DatasetIterator | None = None,
    step: int | None = None,
  ) -> Tree:
    """Restores the state with the shardings of `abstract`, and the iterator.

    Args:
      abstract: tree of jax.ShapeDtypeStruct with its shardings.
      iterator: iterator of an equal loader, on any number of processes.
      step: step to restore; None for the latest.

    Raises:
      ValueError: no such step, a damaged one, or one of another model.
    """
    step = paths.find_step(self.directory, step)
    path = self.directory / str(step)
    trees.check_tree(trees.saved_shapes(path), abstract, where=path)
    items = {'state': ocp.args.StandardRestore(trees.with_shardings(abstract))}
    position = None if iterator is None else _position(path)
    try:
      restored = self._manager.restore(step, args=ocp.args.Composite(**items))
      if iterator is not None:
        iterator.set_state(position)
      return restored['state']
    except Exception as e:
      raise paths.damaged(path, e) from e

  def wait(self) -> None:
    """Waits until every save is on disk; raises the error of a save."""
    try:
      self._manager.wait_until_finished()
    except Exception as e:
      raise self._failed(e) from e

  def _failed(self, error: Exception) -> OSError:
    return OSError(
      f'{self.directory}: a checkpoint could not be written '
      f'({type(error).__name__}: {str(error)[:300]})'
    )

  def close(self) -> None:
    """Waits until every save is on disk, and closes the manager."""
    self._manager.close()


def _position(step: epath.Path) -> dict:
  """The position in the data: that of this process, or a common one."""
  folder = step / 'data'
  name = f'process_{jax.process_index()}-of-{jax.process_count()}.json'
  mine, files = folder / name, sorted(folder.glob('process_*-of-*.json'))
  if not files:
    raise ValueError(
      f'{step} has no position in the data; start a new run in another folder'
    )
  if mine.exists():
    return json.loads(mine.read_text())
  positions = {path.read_text() for path in files}
  if len(positions) > 1:
    raise ValueError(
      f'{step}: its {len(files)} processes have different positions in the '
      'data; resume on as many processes'
    )
  return json.loads(positions.pop())
