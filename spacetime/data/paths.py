"""Where characters are: their own motion, then the camera's."""

import dataclasses
import functools

import numpy as np
from scipy import interpolate

from spacetime.data import world as world_lib

PAN = 0.14
ZOOM = 1.3
HOPS = {'slow': 2, 'fast': 3}
# Fewer frames than this do not show a hop: short clips have fewer hops.
HOP_FRAMES = 5
HOP_HEIGHT = 0.18
# A circle's radius as a share of the straight way at the same speed.
RADIUS = 0.3
# A wandering character turns every so many frames, within a square that is so
# large a share of the shorter side.
TURN_FRAMES = {'slow': 24, 'fast': 12}
ROOM = 0.5


@dataclasses.dataclass(frozen=True)
class View:
  """The camera: pixel = (point - middle - shift) * zoom + middle.

  Attributes:
    shift_F2: the camera's own way, (y, x) in pixels.
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
  """What the frames show of each character.

  Attributes:
    centre_FP2: (y, x) in pixels.
    size_FP: edge of the glyph's square in pixels.
  """

  centre_FP2: np.ndarray
  size_FP: np.ndarray


def _times(world: world_lib.World) -> np.ndarray:
  return np.arange(world.frames) / max(world.frames - 1, 1)


@functools.lru_cache(maxsize=512)
def offsets(motion: str, speed: str, *, world: world_lib.World) -> np.ndarray:
  """A character's way from its start, on the ground.

  Eight straight directions; 'bouncing' hops like a ball; 'circling' is one
  clockwise loop from its topmost point; 'still' is zero.

  Returns:
    offset_F2: (y, x) in pixels, zero in frame 0.

  Raises:
    ValueError: an unknown motion.
  """
  time_F = _times(world)
  way = world_lib.SPEEDS[speed] * world.side
  zero_F = np.zeros_like(time_F)
  if motion in world_lib.DIRECTIONS:
    step_2 = np.array(world_lib.DIRECTIONS[motion], float)
    return time_F[:, None] * step_2 * (way / np.linalg.norm(step_2))
  if motion == 'bouncing':
    hops = max(1, min(HOPS[speed], (world.frames - 1) // HOP_FRAMES))
    hop_F = np.abs(np.sin(np.pi * hops * time_F))
    return np.stack([-HOP_HEIGHT * world.side * hop_F, zero_F], 1)
  if motion == 'circling':
    turn_F, radius = 2 * np.pi * time_F, RADIUS * way
    return np.stack([radius * (1 - np.cos(turn_F)), radius * np.sin(turn_F)], 1)
  if motion == 'still':
    return np.stack([zero_F, zero_F], 1)
  raise ValueError(f'motion={motion!r}: expected one of {world_lib.MOTIONS}')


def wandering(way: int, speed: str, *, world: world_lib.World) -> np.ndarray:
  """A smooth way through points drawn at random, at the pace of frames, not
  of clips: a longer clip has more turns.

  Args:
    way: seeds the points.
    speed: a name in SPEEDS.
    world: sizes.

  Returns:
    offset_F2: as `offsets`; at most ROOM from end to end along each axis.

  Source: C. de Boor, A Practical Guide to Splines (1978), cubic interpolation.
  """
  rng = np.random.default_rng(way)
  step = TURN_FRAMES[speed]
  knots_K = np.arange(-1, world.frames // step + 4) * step - rng.uniform(
    0, step
  )
  point_K2 = rng.uniform(-ROOM / 2, ROOM / 2, (len(knots_K), 2))
  spline = interpolate.CubicSpline(knots_K, point_K2)
  offset_F2 = spline(np.arange(world.frames))
  offset_F2 *= np.minimum(1, ROOM / np.maximum(np.ptp(offset_F2, axis=0), 1e-6))
  return (offset_F2 - offset_F2[0]) * world.side


def way_of(
  character: world_lib.Character, *, world: world_lib.World
) -> np.ndarray:
  """A character's way from its start, (F, 2); see `offsets`."""
  if character.motion == world_lib.WANDERING:
    return wandering(character.way, character.speed, world=world)
  return offsets(character.motion, character.speed, world=world)


@functools.lru_cache(maxsize=64)
def view(camera: str, *, world: world_lib.World) -> View:
  """The camera's way over the clip.

  'pan left' moves the camera left, so that the ground moves right. Zooming in
  goes from 1 to 1.3, zooming out from 1.3 to 1.

  Raises:
    ValueError: an unknown camera.
  """
  if camera not in world_lib.CAMERAS:
    raise ValueError(f'camera={camera!r}: expected one of {world_lib.CAMERAS}')
  time_F = _times(world)
  step_2 = np.array(world_lib.PANS.get(camera, (0, 0)), float)
  power_F = {'zoom in': time_F, 'zoom out': 1 - time_F}.get(camera, 0 * time_F)
  return View(
    shift_F2=time_F[:, None] * step_2 * PAN * world.side,
    zoom_F=ZOOM**power_F,
    middle_2=np.array([world.height, world.width]) / 2,
  )


def ground_paths(scene: world_lib.Scene, world: world_lib.World) -> np.ndarray:
  """Each character's way without the camera, for judging its motion.

  Returns:
    point_FP2: (y, x) in pixels.
  """
  return np.stack(
    [np.array(c.start) + way_of(c, world=world) for c in scene.characters],
    1,
  )


def trajectories(
  scene: world_lib.Scene, world: world_lib.World
) -> Trajectories:
  """Each character's centre and size in every frame, seen by the camera."""
  lens = view(scene.camera, world=world)
  point_PF2 = ground_paths(scene, world).swapaxes(0, 1)
  size_P = np.array([world_lib.SIZES[c.size] for c in scene.characters])
  return Trajectories(
    centre_FP2=lens.project(point_PF2).swapaxes(0, 1),
    size_FP=lens.zoom_F[:, None] * size_P * world.side,
  )
