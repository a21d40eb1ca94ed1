"""A pipeline for scenes, and held-out clips of scenes."""

import numpy as np

from spacetime.data.digits import captions, examples
from spacetime.data.digits import world as world_lib
from spacetime.pipeline import pipeline


def real(world: world_lib.World, count: int, *, seed: int):
  """(clips, scenes), held out."""
  records = [
    examples.example(i, world=world, split='validation', seed=seed)
    for i in range(count)
  ]
  scenes = [world_lib.from_json(record['scene']) for record in records]
  return [record['video'] for record in records], scenes


class Maker:
  """A pipeline with settings that all of its clips share.

  Attributes:
    world: of the model's training clips.
    frames: of a training clip.
  """

  def __init__(self, checkpoint: str, *, best_of: int = 1, **settings):
    self.pipe = pipeline.Pipeline(checkpoint, progress=False)
    self.world = self.pipe.engine.data.world
    self.frames = self.pipe.engine.data.frames
    self._best_of, self._settings = best_of, settings

  def __call__(self, scene, *, joins: bool = False, **settings) -> np.ndarray:
    """Frames of a scene; the best of several where there are joins."""
    if joins:
      settings['best_of'] = self._best_of
    prompt = captions.canonical_caption(scene)
    return self.pipe(prompt, **self._settings | settings).frames
