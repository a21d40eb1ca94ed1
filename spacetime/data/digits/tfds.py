"""The digits world as a TFDS data set of ARRAY_RECORD files.

One record holds a clip's bytes, a caption and the scene as JSON, the ground
truth. Record n of a split depends on the seed, the split and n alone.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from spacetime.data.digits import captions, render, scenes
from spacetime.data.digits import world as world_lib


@dataclasses.dataclass(kw_only=True)
class DigitsConfig(tfds.core.BuilderConfig):
  """A world, the sizes of its splits and the seed.

  Attributes:
    world: what the clips may show.
    clips: records of each split by name; absent or 0 is no such split.
    seed: the only source of chance.
  """

  world: world_lib.World
  clips: dict[str, int]
  seed: int

  def __str__(self):
    return self.name


class Digits(tfds.core.GeneratorBasedBuilder):
  """Clips of handwritten digits that move, with captions."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'The first.'}
  BUILDER_CONFIGS = []
  builder_config: DigitsConfig

  def _info(self) -> tfds.core.DatasetInfo:
    world = self.builder_config.world
    shape = (world.frames, world.height, world.width, 3)
    if world.mixed is not None:
      shape = (None, None, None, 3)
    return self.dataset_info_from_configs(
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          'video': tfds.features.Tensor(
            shape=shape, dtype=np.uint8, encoding='zlib'
          ),
          'caption': tfds.features.Text(),
          'scene': tfds.features.Text(),
        }
      ),
      # Scenes are independent draws: their order is already random.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager
    config = self.builder_config
    return {
      split: self._generate_examples(split, number)
      for split, number in config.clips.items()
      if number
    }

  def _generate_examples(self, split: str, number: int) -> Iterator:
    config = self.builder_config
    for index in tqdm.trange(number, desc=f'digits {split}', unit='clip'):
      yield (
        index,
        example(index, world=config.world, split=split, seed=config.seed),
      )


def example(
  index: int, *, world: world_lib.World, split: str, seed: int
) -> dict:
  """Record `index` of a split: video (F, H, W, 3) uint8, caption, scene.

  In a world of mixed sizes training records differ in F, H and W; held-out
  ones have those of the world.
  """
  scene, world, caption = _told(index, world=world, split=split, seed=seed)
  return {
    'video': render.clip(scene, world),
    'caption': caption,
    'scene': world_lib.to_json(scene),
  }


def _told(index: int, *, world: world_lib.World, split: str, seed: int):
  """(scene, its world of one size, caption) of record `index`."""
  place = world_lib.SPLITS.index(split)
  rng = np.random.default_rng([seed, place, index])
  if split == 'train':
    world = world.drawn(rng)
  scene = scenes.sample_scene(rng, world=world, split=split)
  return scene, world, captions.caption(scene, rng, world=world)


@dataclasses.dataclass(frozen=True)
class Live:
  """The records of one split, rendered as they are read: no files.

  Attributes:
    world: what the clips may show.
    split: one of world.SPLITS.
    clips: how many there are.
    seed: at least 0.
  """

  world: world_lib.World
  split: str
  clips: int
  seed: int

  def __len__(self) -> int:
    return self.clips

  def __getitem__(self, index: int) -> dict:
    return example(index, world=self.world, split=self.split, seed=self.seed)

  def caption(self, index: int) -> str:
    """A record's caption, at no cost of its video."""
    told = _told(index, world=self.world, split=self.split, seed=self.seed)
    return told[2]


def prepare(
  data_dir: str,
  *,
  world: world_lib.World,
  train: int,
  validation: int,
  compositions: int = 0,
  seed: int = 0,
) -> str:
  """Builds the data set unless it is there.

  A build goes to a folder of its own that is renamed once it is whole, so a
  killed one leaves nothing that `source` would read.

  Args:
    data_dir: parent of the data sets; each world, size and seed has a folder.
    world: what the clips may show.
    train: clips of training glyphs without held-out compositions, at least 1.
    validation: clips of held-out glyphs without held-out compositions.
    compositions: clips of held-out glyphs with a held-out composition.
    seed: at least 0; the same seed makes the same records.

  Returns:
    The folder of the data set, for `source`.

  Raises:
    ValueError: a size or seed out of range.
  """
  clips = {
    'train': train,
    'validation': validation,
    'compositions': compositions,
  }
  for name, number in clips.items():
    least = 1 if name == 'train' else 0
    if number < least:
      raise ValueError(
        f'{name}={number}: expected at least {least} clips; change '
        'data.clips or data.held_out_clips'
      )
  if seed < 0:
    raise ValueError(f'seed={seed}: expected at least 0; change seed')
  identity = json.dumps([world.identity(), clips, seed])
  digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
  size = f'{world.frames}x{world.height}x{world.width}'
  config = DigitsConfig(
    name=f'{size if world.mixed is None else "mixed"}_{digest}',
    description=identity,
    world=world,
    clips=clips,
    seed=seed,
  )
  builder = Digits(
    data_dir=str(pathlib.Path(data_dir).expanduser().absolute()),
    config=config,
    file_format=tfds.core.FileFormat.ARRAY_RECORD,
  )
  tfds.disable_progress_bar()  # Its own bars know no total.
  try:
    builder.download_and_prepare()
  except OSError:
    # Another process may have renamed the same data set into place first.
    if not (pathlib.Path(builder.data_dir) / 'dataset_info.json').exists():
      raise
  return str(builder.data_dir)


def source(path: str, split: str):
  """Random access to one split of what `prepare` built.

  Args:
    path: the folder that `prepare` returned.
    split: 'train', 'validation' or 'compositions', or a TFDS slice of one.

  Returns:
    A sequence of dicts: video (F, H, W, 3) uint8; caption and scene as UTF-8
    bytes.

  Raises:
    ValueError: no data set at this path, or it lacks the split.
  """
  if not (pathlib.Path(path) / 'dataset_info.json').exists():
    raise ValueError(
      f'path={path!r}: expected the folder of a data set; change --data_dir '
      'or build it with prepare'
    )
  builder = tfds.builder_from_directory(path)
  name = split.split('[')[0]
  if name not in builder.info.splits:
    raise ValueError(
      f'split={split!r}: expected one of {sorted(builder.info.splits)} in '
      f'{path!r}'
    )
  return builder.as_data_source(split=split)
