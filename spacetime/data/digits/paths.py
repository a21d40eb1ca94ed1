"""Positions of characters: their own motion, then the camera's."""

import dataclasses
import functools

import numpy as np

from spacetime.data.digits import motions, wandering
from spacetime.data.digits import world as world_lib

PAN = 0.14
ZOOM = 1.3


@dataclasses.dataclass(frozen=True)
class View:
  """The camera: pixel = (point - middle - shift) * zoom + middle.

  Attributes:
    shift_F2: shift of the camera, (y, x) in pixels.
    zoom_F: magnification about the middle of the frame.
    middle_2: the middle of the frame.
  """

  shift_F2: np.ndarray
  zoom_F: np.ndarray
  middle_2: np.ndarray

  def project(self, point_xF2: np.ndarray) -> np.ndarray:
    """Points on the ground, per frame, to pixels."""
    zoom_F1 = self.zoom_F[:, None]
    return (point_xF2 - self.middle_2 - self.shift_F2) * zoom_F1 + self.middle_2

  def unproject(self, pixel_xF2: np.ndarray) -> np.ndarray:
    """Pixels, per frame, to points on the ground."""
    zoom_F1 = self.zoom_F[:, None]
    return (pixel_xF2 - self.middle_2) / zoom_F1 + self.middle_2 + self.shift_F2


@dataclasses.dataclass(frozen=True)
class Trajectories:
  """Positions and sizes of the characters in every frame.

  Attributes:
    centre_FP2: (y, x) in pixels.
    size_FP: edge of the glyph's square in pixels.
  """

  centre_FP2: np.ndarray
  size_FP: np.ndarray


def character_path(
  character: world_lib.Character, *, world: world_lib.World
) -> np.ndarray:
  """A character's path from its start, (F, 2); see motions.offsets."""
  if character.motion == world_lib.WANDERING:
    return wandering.offsets(character.path_seed, character.speed, world=world)
  return motions.offsets(character.motion, character.speed, world=world)


@functools.lru_cache(maxsize=64)
def view(camera: str, *, world: world_lib.World) -> View:
  """The motion of the camera over the clip.

  'pan left' moves the camera left, so that the ground moves right. Zooming in
  goes from 1 to 1.3, zooming out from 1.3 to 1.

  Raises:
    ValueError: an unknown camera.
  """
  if camera not in world_lib.CAMERAS:
    raise ValueError(f'camera={camera!r}: expected one of {world_lib.CAMERAS}')
  time_F = motions.times(world)
  step_2 = np.array(world_lib.PANS.get(camera, (0, 0)), float)
  power_F = {'zoom in': time_F, 'zoom out': 1 - time_F}.get(camera, 0 * time_F)
  return View(
    shift_F2=time_F[:, None] * step_2 * PAN * world.side,
    zoom_F=ZOOM**power_F,
    middle_2=np.array([world.height, world.width]) / 2,
  )


def ground_paths(scene: world_lib.Scene, world: world_lib.World) -> np.ndarray:
  """Each character's path without the camera, to evaluate its motion.

  Returns:
    point_FP2: (y, x) in pixels.
  """
  return np.stack(
    [
      np.array(c.start) + character_path(c, world=world)
      for c in scene.characters
    ],
    1,
  )


def trajectories(
  scene: world_lib.Scene, world: world_lib.World
) -> Trajectories:
  """Each character's centre and size in every frame, as the camera sees it."""
  lens = view(scene.camera, world=world)
  point_PF2 = ground_paths(scene, world).swapaxes(0, 1)
  size_P = np.array([world_lib.SIZES[c.size] for c in scene.characters])
  return Trajectories(
    centre_FP2=lens.project(point_PF2).swapaxes(0, 1),
    size_FP=lens.zoom_F[:, None] * size_P * world.side,
  )
