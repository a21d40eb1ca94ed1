"""Examples of the digits world: a video, its caption and its scene by index.

Example n of a split depends only on the seed, the split and n.
"""

import dataclasses

import numpy as np

from spacetime.data.digits import captions, render, scenes
from spacetime.data.digits import world as world_lib


def example(
  index: int, *, world: world_lib.World, split: str, seed: int
) -> dict:
  """Renders example `index` of a split.

  In a world of mixed sizes training examples differ in F, H and W; held-out
  ones have the size of the world.

  Args:
    index: from 0.
    world: what scenes may contain.
    split: one of world.SPLITS.
    seed: at least 0.

  Returns:
    {'video': uint8 (F, H, W, 3), 'caption': str, 'scene': JSON}.
  """
  scene, world, caption = _scene(index, world=world, split=split, seed=seed)
  return {
    'video': render.clip(scene, world),
    'caption': caption,
    'scene': world_lib.to_json(scene),
  }


@dataclasses.dataclass(frozen=True)
class LiveExamples:
  """The examples of one split, each rendered when it is read: no files.

  Attributes:
    world: what scenes may contain.
    split: one of world.SPLITS.
    count: number of examples.
    seed: at least 0.
  """

  world: world_lib.World
  split: str
  count: int
  seed: int

  def __len__(self) -> int:
    return self.count

  def clip_size(self, index: int) -> tuple[int, int, int]:
    """(frames, height, width) of an example, without rendering it."""
    return clip_size(index, world=self.world, split=self.split, seed=self.seed)

  def __getitem__(self, index: int) -> dict:
    return example(index, world=self.world, split=self.split, seed=self.seed)

  def caption(self, index: int) -> str:
    """The caption of an example, without rendering its video."""
    *_, caption = _scene(
      index, world=self.world, split=self.split, seed=self.seed
    )
    return caption


def clip_size(
  index: int, *, world: world_lib.World, split: str, seed: int
) -> tuple[int, int, int]:
  """(frames, height, width) of `example`, without rendering it."""
  world = _drawn(index, world=world, split=split, seed=seed)[1]
  return world.frames, world.height, world.width


def _drawn(index: int, *, world: world_lib.World, split: str, seed: int):
  """(random generator of an example, its world of one size)."""
  rng = np.random.default_rng([seed, world_lib.SPLITS.index(split), index])
  return rng, world.drawn(rng) if split == 'train' else world


def _scene(index: int, *, world: world_lib.World, split: str, seed: int):
  """(scene, its world of one size, caption) of an example."""
  rng, world = _drawn(index, world=world, split=split, seed=seed)
  scene = scenes.sample_scene(rng, world=world, split=split)
  return scene, world, captions.caption(scene, rng, world=world)
