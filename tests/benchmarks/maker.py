"""A model that makes windows, and real clips for them; of modes.py."""

import jax
import numpy as np

from spacetime import build, generate, pretrained, sharding
from spacetime import config as config_lib
from spacetime.data import captions, digits_tfds
from spacetime.data import world as world_lib
from spacetime.sampling import joins


class Maker:
  """A model that makes the windows of `conditions`."""

  def __init__(self, checkpoint: str, *, candidates: int = 1, **settings):
    mesh = sharding.make_mesh(
      sharding.MeshConfig(data=1), devices=jax.devices()[:1]
    )
    self.model = pretrained.load(checkpoint, mesh=mesh)
    self.world = config_lib.data(self.model.config).world
    self.grid = self._grid(self.world.frames)
    self.settings = settings
    self.candidates = candidates

  def _grid(self, frames: int):
    world = self.world
    size = (frames, world.height, world.width)
    return build.grids(self.model.config, self.model.networks, size)

  def __call__(
    self,
    window,
    scene,
    *,
    seed: int,
    frames: int | None = None,
    **settings,
  ) -> np.ndarray:
    """The window's frames, made; without one so many, as trained if None. The
    smoothest of the candidates, where there is a join."""
    settings = self.settings | settings
    frames = frames or self.world.frames
    if window is not None:
      frames = len(window.frames_FHWC)
    at = joins.of(window) if window is not None else ()
    count = self.candidates if at else 1
    drawn = generate.sample(
      self.model,
      [captions.canonical_caption(scene)] * count,
      grid=self._grid(frames),
      settings=config_lib.sampling(self.model.config, **settings),
      window=window,
      seed=seed,
    )
    return joins.smoothest(drawn, at, candidates=count)[0][0]


def real(world, count: int, *, seed: int):
  """(clips, scenes), held out."""
  records = [
    digits_tfds.example(i, world=world, split='validation', seed=seed)
    for i in range(count)
  ]
  scenes = [world_lib.from_json(record['scene']) for record in records]
  return [record['video'] for record in records], scenes
