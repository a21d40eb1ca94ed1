"""Paths of wandering characters, which can be continued at both ends.

A path is a smooth curve through random points, or consists of legs: pieces of
the other motions with smooth turns between them. Legs show how a character
continues that goes straight, circles or hops, as the extension, connection or
loop of a clip needs it; no clip of these motions alone does.
"""

import numpy as np
from scipy import interpolate

from spacetime.data.digits import motions
from spacetime.data.digits import world as world_lib

# Frames between turns of a wandering character, and the edge of the square that
# it stays in, as a share of the shorter side.
TURN_FRAMES = {'slow': 24, 'fast': 12}
ROOM = 0.5
# Legs are pieces of clips of CLIP frames, and as fast as in those.
CLIP = 17
SHORTEST = 4
# Fewest and most frames of a fast character's turn, and the highest mean speed
# of a turn as a multiple of the speed of straight motion.
TURNS = 8, 40
HURRY = 0.8


def offsets(
  path_seed: int, speed: str, *, world: world_lib.World
) -> np.ndarray:
  """A wandering character's path from its start, on the ground.

  Speed is per frame, not per clip: a longer clip has more turns.

  Args:
    path_seed: seed of the path; below 0 the path consists of legs.
    speed: a name in SPEEDS.
    world: sizes of the clip.

  Returns:
    offset_F2: (y, x) in pixels, zero in frame 0; at most ROOM of the shorter
    side from end to end along each axis.
  """
  draw = _legs if path_seed < 0 else _smooth
  offset_F2 = draw(np.random.default_rng(abs(path_seed)), speed, world)
  offset_F2 *= np.minimum(1, ROOM / np.maximum(np.ptp(offset_F2, axis=0), 1e-6))
  return (offset_F2 - offset_F2[0]) * world.side


def _smooth(rng, speed: str, world: world_lib.World) -> np.ndarray:
  """A curve through random points, (F, 2), in shares of the shorter side.

  Source: C. de Boor, A Practical Guide to Splines (1978), cubic interpolation.
  """
  step = TURN_FRAMES[speed]
  knots_K = np.arange(-1, world.frames // step + 4) * step - rng.uniform(
    0, step
  )
  point_K2 = rng.uniform(-ROOM / 2, ROOM / 2, (len(knots_K), 2))
  return interpolate.CubicSpline(knots_K, point_K2)(np.arange(world.frames))


def _legs(rng, speed: str, world: world_lib.World) -> np.ndarray:
  """Pieces of other motions joined by turns; units as of `_smooth`.

  Source: turns have minimal jerk, Flash and Hogan 1985, 'The coordination of
  arm movements', equation 3, here with speed at both ends.
  """
  leg_N2 = _leg(rng, speed, world)
  skipped = int(rng.integers(0, CLIP + TURNS[0]))  # frames before frame 0
  parts, frames = [leg_N2], len(leg_N2) - skipped
  while frames < world.frames:
    last_N2, leg_N2 = leg_N2, _leg(rng, speed, world)
    distance = np.hypot(*(leg_N2[0] - last_N2[-1]))
    turn_N2 = _turn(last_N2, leg_N2, _turn_frames(rng, distance, speed))
    parts += [turn_N2, leg_N2]
    frames += len(turn_N2) + len(leg_N2)
  return np.concatenate(parts)[skipped : skipped + world.frames]


def _leg(rng, speed: str, world: world_lib.World) -> np.ndarray:
  """Some consecutive frames of another motion, (N, 2), at a random position."""
  motion = world_lib.MOTIONS[rng.integers(len(world_lib.MOTIONS))]
  clip_F2 = motions.offsets(
    motion, speed, world=world.resized(CLIP, world.side, world.side)
  )
  clip_F2 = clip_F2 / world.side
  length = int(rng.integers(SHORTEST, CLIP + 1))
  # Drawn beyond both ends, since clips are continued at their ends.
  first = int(rng.integers(-4, CLIP - length + 5))
  first = min(max(first, 0), CLIP - length)
  leg_N2 = clip_F2[first : first + length]
  low_2 = -ROOM / 2 - leg_N2.min(0)
  high_2 = np.maximum(ROOM / 2 - leg_N2.max(0), low_2)
  return leg_N2 + rng.uniform(low_2, high_2)


def _turn_frames(rng, distance: float, speed: str) -> int:
  """Frames from the last one of a leg to the first one of the next."""
  slow = TURN_FRAMES[speed] / TURN_FRAMES['fast']
  drawn = slow * np.exp(rng.uniform(*np.log(TURNS)))
  pace = HURRY * world_lib.SPEEDS[speed] / (CLIP - 1)
  return int(np.ceil(max(drawn, distance / pace)))


def _turn(before_N2: np.ndarray, after_N2: np.ndarray, frames: int):
  """The frames between two legs, (frames - 1, 2).

  A polynomial of degree five with the velocities of the legs at its ends and no
  acceleration there.
  """
  leaves_2 = frames * (before_N2[-1] - before_N2[-2])
  change_2 = frames * (after_N2[1] - after_N2[0]) - leaves_2
  step_2 = after_N2[0] - before_N2[-1] - leaves_2
  s_N1 = (np.arange(1, frames) / frames)[:, None]
  return (
    before_N2[-1]
    + leaves_2 * s_N1
    + (10 * step_2 - 4 * change_2) * s_N1**3
    + (7 * change_2 - 15 * step_2) * s_N1**4
    + (6 * step_2 - 3 * change_2) * s_N1**5
  )
