"""A model that makes windows, and real clips for them; of modes.py."""

import numpy as np

from spacetime import sharding
from spacetime.checkpoint import load
from spacetime.config import networks
from spacetime.data.digits import captions, examples
from spacetime.data.digits import world as world_lib
from spacetime.pipeline import best_of_n, generate


class Maker:
  """A model that makes the windows of `conditions`."""

  def __init__(self, checkpoint: str, *, candidates: int = 1, **settings):
    mesh = sharding.single_device_mesh()
    self.model = load.load(checkpoint, mesh=mesh)
    self.world = self.model.experiment.data.world
    self.grid = self._grid(self.world.frames)
    self.settings = settings
    self.candidates = candidates

  def _grid(self, frames: int):
    world = self.world
    size = (frames, world.height, world.width)
    return networks.clip_geometry(
      self.model.experiment.data, self.model.networks, size
    )

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
    at = best_of_n.of(window) if window is not None else ()
    count = self.candidates if at else 1
    drawn = generate.sample(
      self.model,
      [captions.canonical_caption(scene)] * count,
      grid=self._grid(frames),
      settings=self.model.experiment.sampling.with_changes(**settings),
      window=window,
      seed=seed,
    )
    return best_of_n.smoothest(drawn, at, candidates=count)[0][0]


def real(world, count: int, *, seed: int):
  """(clips, scenes), held out."""
  records = [
    examples.example(i, world=world, split='validation', seed=seed)
    for i in range(count)
  ]
  scenes = [world_lib.from_json(record['scene']) for record in records]
  return [record['video'] for record in records], scenes
