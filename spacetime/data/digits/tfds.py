"""The digits world as a TFDS data set of ARRAY_RECORD files.

A record holds the video, the caption and the scene as JSON, the ground truth.
Records are those of examples.py, in their order. Every file is a task of its
own, so that all cores render and an interrupted run continues after the last
complete file; `dataset_info.json` is written last.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
import threadpoolctl
import tqdm
from absl import logging
from array_record.python import array_record_module

from spacetime import SettingError
from spacetime.data.digits import examples
from spacetime.data.digits import world as world_lib
from spacetime.media import files

NAME, VERSION = 'digits', '1.0.0'
INFO = 'dataset_info.json'
SHARD = 256  # examples in a file


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of a data set and the examples in it."""

  path: pathlib.Path
  world: world_lib.World
  split: str
  indices: range
  seed: int

  def write(self) -> int:
    """Renders and writes the file; returns the number of its examples."""
    features = _features(self.world)
    with files.atomic_write(self.path) as temporary:
      writer = array_record_module.ArrayRecordWriter(
        os.fspath(temporary), 'group_size:1'
      )
      for index in self.indices:
        example = examples.example(
          index, world=self.world, split=self.split, seed=self.seed
        )
        writer.write(features.serialize_example(example))
      writer.close()
    return len(self.indices)


def prepare(
  data_dir: str,
  *,
  world: world_lib.World,
  train: int,
  validation: int,
  compositions: int = 0,
  seed: int = 0,
) -> str:
  """Renders the data set, or its missing files, on all cores.

  Args:
    data_dir: parent of the data sets; each world, size and seed has a folder.
    world: world of the clips.
    train: clips of training glyphs without held-out compositions, at least 1.
    validation: clips of held-out glyphs without held-out compositions.
    compositions: clips of held-out glyphs with a held-out composition.
    seed: at least 0; the same seed gives the same records.

  Returns:
    The folder of the data set, for `source`.

  Raises:
    SettingError: a count or seed out of range.
  """
  clips = {
    'train': train,
    'validation': validation,
    'compositions': compositions,
  }
  if train < 1:
    raise SettingError('data.clips', train, '1 or more')
  for count in (validation, compositions):
    if count < 0:
      raise SettingError('data.held_out_clips', count, '0 or more')
  if seed < 0:
    raise SettingError('seed', seed, '0 or more')
  identity = json.dumps([world.identity(), clips, seed])
  digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
  size = f'{world.frames}x{world.height}x{world.width}'
  name = f'{size if world.mixed is None else "mixed"}_{digest}'
  root = files.check_local('data.dir', data_dir).absolute()
  folder = root / NAME / name / VERSION
  if (folder / INFO).exists():
    return os.fspath(folder)
  files.check_writable(folder)
  shards = {
    split: _shards(folder, world, split, count, seed)
    for split, count in clips.items()
    if count
  }
  _write([shard for part in shards.values() for shard in part])
  for leftover in folder.glob('.*.tmp.*'):  # of processes that were killed
    leftover.unlink()
  _write_metadata(folder, world, shards, identity)
  return os.fspath(folder)


def _write_metadata(
  folder: pathlib.Path,
  world: world_lib.World,
  shards: Mapping[str, list[Shard]],
  description: str,
) -> None:
  """Writes the files by which TFDS knows the data set; `shards`: by split."""
  template = tfds.core.ShardedFileTemplate(
    data_dir=folder, dataset_name=NAME, filetype_suffix='array_record'
  )
  with _quiet():
    tfds.folder_dataset.write_metadata(
      data_dir=folder,
      features=_features(world),
      split_infos=[
        tfds.core.SplitInfo(
          name=split,
          shard_lengths=[len(shard.indices) for shard in part],
          num_bytes=sum(shard.path.stat().st_size for shard in part),
          filename_template=template.replace(split=split),
        )
        for split, part in shards.items()
      ],
      check_data=False,
      description=description,
    )


@dataclasses.dataclass(frozen=True)
class Records:
  """Random access to the records of one split.

  Attributes:
    source: TFDS's data source: video (F, H, W, 3) uint8; caption and scene as
      UTF-8 bytes.
    clip_size: (frames, height, width) of a record by its index, for clips of
      mixed sizes; None where nobody asks for it.
  """

  source: Sequence
  clip_size: Callable[[int], tuple[int, int, int]] | None = None

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> dict[str, np.ndarray | bytes]:
    return self.source[index]

  def caption(self, index: int) -> str:
    """The caption of a record."""
    return self.source[index]['caption'].decode()


def source(
  path: str,
  split: str,
  *,
  clip_size: Callable[[int], tuple[int, int, int]] | None = None,
) -> Records:
  """Opens one split of a data set that `prepare` has rendered.

  Args:
    path: the folder that `prepare` returned.
    split: 'train', 'validation' or 'compositions', or a TFDS slice of one.
    clip_size: see Records.

  Raises:
    ValueError: no data set at this path, or it lacks the split.
  """
  if not (pathlib.Path(path) / INFO).exists():
    raise ValueError(f'{path}: expected the folder of a data set, with {INFO}')
  with _quiet():
    builder = tfds.builder_from_directory(path)
    name = split.split('[')[0]
    if name not in builder.info.splits:
      raise ValueError(
        f'split={split!r}: expected one of {sorted(builder.info.splits)} in '
        f'{path!r}'
      )
    return Records(builder.as_data_source(split=split), clip_size)


def _features(world: world_lib.World) -> tfds.features.FeaturesDict:
  shape = (world.frames, world.height, world.width, 3)
  if world.mixed is not None:
    shape = (None, None, None, 3)
  return tfds.features.FeaturesDict(
    {
      'video': tfds.features.Tensor(
        shape=shape, dtype=np.uint8, encoding='zlib'
      ),
      'caption': tfds.features.Text(),
      'scene': tfds.features.Text(),
    }
  )


def _shards(folder, world, split: str, count: int, seed: int) -> list[Shard]:
  """The files of a split; examples are independent: their order is random."""
  total = -(-count // SHARD)
  return [
    Shard(
      folder / f'{NAME}-{split}.array_record-{i:05d}-of-{total:05d}',
      world,
      split,
      range(i * SHARD, min((i + 1) * SHARD, count)),
      seed,
    )
    for i in range(total)
  ]


def _write(shards: list[Shard]) -> None:
  """Writes the files that are not there yet, on all cores, with a bar."""
  missing = [shard for shard in shards if not shard.path.exists()]
  clips = sum(len(shard.indices) for shard in shards)
  left = sum(len(shard.indices) for shard in missing)
  cores = min(_cores(), len(missing))
  with tqdm.tqdm(
    total=clips, initial=clips - left, desc='render digits', unit='clip'
  ) as bar:
    # Processes take seconds to start: few clips are rendered in this one.
    if cores > 1 and left > 2 * SHARD:
      with contextlib.suppress(concurrent.futures.process.BrokenProcessPool):
        for count in _write_in_processes(missing, cores):
          bar.update(count)
    # A script without a __main__ guard breaks the pool; the rest is done here.
    for shard in missing:
      if not shard.path.exists():
        bar.update(shard.write())


def _write_in_processes(shards: list[Shard], cores: int) -> Iterator[int]:
  executor = concurrent.futures.ProcessPoolExecutor(
    cores,
    mp_context=multiprocessing.get_context('spawn'),
    # One thread a process, or their matrix products compete for the cores.
    initializer=threadpoolctl.threadpool_limits,
    initargs=(1,),
  )
  try:
    futures = [executor.submit(shard.write) for shard in shards]
    for future in concurrent.futures.as_completed(futures):
      yield future.result()
  finally:
    executor.shutdown(cancel_futures=True)


def _cores() -> int:
  if hasattr(os, 'sched_getaffinity'):  # Linux
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences what TFDS logs below a warning."""
  before = logging.get_verbosity()
  logging.set_verbosity(min(before, logging.WARNING))
  try:
    yield
  finally:
    logging.set_verbosity(before)
