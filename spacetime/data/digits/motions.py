"""Motions without parameters: straight, bouncing, circling, still."""

import functools

import numpy as np

from spacetime.data.digits import world as world_lib

HOPS = {'slow': 2, 'fast': 3}
# Frames that a hop needs at least: short clips have fewer hops.
HOP_FRAMES = 5
HOP_HEIGHT = 0.18
# A circle's radius as a share of the straight distance at the same speed.
RADIUS = 0.3


def times(world: world_lib.World) -> np.ndarray:
  """Times of the frames of a clip, (F,) in [0, 1]."""
  return np.arange(world.frames) / max(world.frames - 1, 1)


@functools.lru_cache(maxsize=512)
def offsets(motion: str, speed: str, *, world: world_lib.World) -> np.ndarray:
  """A character's path from its start, on the ground.

  Eight straight directions; 'bouncing' hops like a ball; 'circling' is one
  clockwise loop from its topmost point; 'still' is zero.

  Returns:
    offset_F2: (y, x) in pixels, zero in frame 0.

  Raises:
    ValueError: an unknown motion.
  """
  time_F = times(world)
  distance = world_lib.SPEEDS[speed] * world.side
  zero_F = np.zeros_like(time_F)
  if motion in world_lib.DIRECTIONS:
    step_2 = np.array(world_lib.DIRECTIONS[motion], float)
    return time_F[:, None] * step_2 * (distance / np.linalg.norm(step_2))
  if motion == 'bouncing':
    hops = max(1, min(HOPS[speed], (world.frames - 1) // HOP_FRAMES))
    hop_F = np.abs(np.sin(np.pi * hops * time_F))
    return np.stack([-HOP_HEIGHT * world.side * hop_F, zero_F], 1)
  if motion == 'circling':
    turn_F, radius = 2 * np.pi * time_F, RADIUS * distance
    return np.stack([radius * (1 - np.cos(turn_F)), radius * np.sin(turn_F)], 1)
  if motion == 'still':
    return np.stack([zero_F, zero_F], 1)
  raise ValueError(f'motion={motion!r}: expected one of {world_lib.MOTIONS}')
