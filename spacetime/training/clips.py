"""The clips of a run: its list, stored at the first start, and what has changed
since."""

from absl import logging

from spacetime import SettingError, checkpoint
from spacetime.checkpoint import paths
from spacetime.config.experiment import Experiment
from spacetime.data import clip_list
from spacetime.data.splits import Splits
from spacetime.sharding import multihost


def recorded(workdir) -> clip_list.ClipList | None:
  """The list of clips that a run began with; None before its first start.

  Raises:
    ValueError: the file cannot be read.
  """
  path = checkpoint.absolute(workdir) / clip_list.FILE
  if not path.exists():
    return None
  try:
    return clip_list.ClipList.from_json(path.read_text())
  except ValueError as e:
    raise ValueError(
      f'{path} cannot be read ({e}); remove it to take the clips as they are '
      'now, in a new order'
    ) from e


def open_splits(experiment: Experiment, workdir, *, embedded: bool) -> Splits:
  """Opens the clips of a run, by the list that it began with.

  Args:
    experiment: experiment of the run.
    workdir: its output folder; nothing is written.
    embedded: whether captions are used as stored embeddings.

  Raises:
    ValueError: missing or unusable data, or other clips than the run's.
  """
  data, before = experiment.data, recorded(workdir)
  keep = before is not None and data.changes == 'keep'
  splits = data.source.open_splits(
    data,
    seed=experiment.seed,
    embedded=embedded,
    recorded=before if keep and before.names else None,
  )
  now = splits.clips
  if before is None or now is None:
    return splits
  # A fingerprint of names alone, without the subfolders of a folder.
  if now.identity == before.identity and not before.changes(now):
    return splits
  if keep and not before.names:
    raise SettingError(
      'data.dir',
      data.dir,
      f'the clips that the run began with, list {before.identity}, not '
      f'{now.identity}',
      hint="restore them, or set `data.changes` to 'adopt', which takes these "
      'in a new order',
    )
  changes = before.changes(now) if before.names else 'another list'
  if keep:
    logging.warning(
      '%s has changed since the run began: %s; the run keeps its list, in '
      'which removed clips are skipped, added ones left out and changed ones '
      "read as they are now (data.changes='adopt' takes the clips as they are, "
      'in a new order)',
      data.dir,
      changes,
    )
  else:
    logging.warning(
      "%s has changed since the run began: %s; data.changes='adopt' takes the "
      'clips as they are, in a new order: some may come again before others '
      'come at all',
      data.dir,
      changes,
    )
  return splits


def save(experiment: Experiment, workdir, splits: Splits) -> None:
  """Stores the list of clips, at the first start or where changes are adopted.

  Args:
    experiment: experiment of the run.
    workdir: its output folder.
    splits: clips that the run trains on.
  """
  before = recorded(workdir)
  if splits.clips is None or not multihost.is_first():
    return
  if before is not None and experiment.data.changes == 'keep':
    return
  if before is None or before.identity != splits.clips.identity:
    path = checkpoint.absolute(workdir) / clip_list.FILE
    paths.write_file(path, splits.clips.to_json().encode())
