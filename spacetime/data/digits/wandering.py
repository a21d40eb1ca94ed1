"""Ways of who wanders: they can go on for ever, from anywhere to anywhere.

Either a smooth way through points, or legs: pieces of the other motions with
smooth turns between. What follows a thing that goes straight, or round, or
hops, is in no clip of these motions alone; legs show it, as a video that is
extended, connected or looped has to go on.
"""

import numpy as np
from scipy import interpolate

from spacetime.data.digits import motions
from spacetime.data.digits import world as world_lib

# A wandering character turns every so many frames, within a square that is so
# large a share of the shorter side.
TURN_FRAMES = {'slow': 24, 'fast': 12}
ROOM = 0.5
# Legs are pieces of clips of so many frames, and as fast as those.
CLIP = 17
SHORTEST = 4
# Frames of a turn of who is fast, fewest and most; at most so many times as
# fast, on the whole, as who goes straight.
TURNS = 8, 40
HURRY = 0.8


def offsets(way: int, speed: str, *, world: world_lib.World) -> np.ndarray:
  """A wandering character's way from its start, on the ground, at the pace of
  frames, not of clips: a longer clip has more turns.

  Args:
    way: which; below 0 in legs.
    speed: a name in SPEEDS.
    world: sizes.

  Returns:
    offset_F2: (y, x) in pixels, zero in frame 0; at most ROOM of the shorter
    side from end to end along each axis.
  """
  ways = _legs if way < 0 else _smooth
  offset_F2 = ways(np.random.default_rng(abs(way)), speed, world)
  offset_F2 *= np.minimum(1, ROOM / np.maximum(np.ptp(offset_F2, axis=0), 1e-6))
  return (offset_F2 - offset_F2[0]) * world.side


def _smooth(rng, speed: str, world: world_lib.World) -> np.ndarray:
  """Through points drawn at random; (F, 2), in shares of the shorter side.

  Source: C. de Boor, A Practical Guide to Splines (1978), cubic interpolation.
  """
  step = TURN_FRAMES[speed]
  knots_K = np.arange(-1, world.frames // step + 4) * step - rng.uniform(
    0, step
  )
  point_K2 = rng.uniform(-ROOM / 2, ROOM / 2, (len(knots_K), 2))
  return interpolate.CubicSpline(knots_K, point_K2)(np.arange(world.frames))


def _legs(rng, speed: str, world: world_lib.World) -> np.ndarray:
  """As other motions go, some frames each; as `_smooth`.

  Source: turns are of least jerk, Flash and Hogan 1985, 'The coordination of
  arm movements', equation 3, here with speed at both ends.
  """
  leg_N2 = _leg(rng, speed, world)
  begun = int(rng.integers(0, CLIP + TURNS[0]))  # frames before the first
  parts, frames = [leg_N2], len(leg_N2) - begun
  while frames < world.frames:
    last_N2, leg_N2 = leg_N2, _leg(rng, speed, world)
    far = np.hypot(*(leg_N2[0] - last_N2[-1]))
    turn_N2 = _turn(last_N2, leg_N2, _turning(rng, far, speed))
    parts += [turn_N2, leg_N2]
    frames += len(turn_N2) + len(leg_N2)
  return np.concatenate(parts)[begun : begun + world.frames]


def _leg(rng, speed: str, world: world_lib.World) -> np.ndarray:
  """Some frames of a clip of another motion, (N, 2): from its beginning, to its
  end, or between, somewhere in the room."""
  motion = world_lib.MOTIONS[rng.integers(len(world_lib.MOTIONS))]
  clip_F2 = motions.offsets(
    motion, speed, world=world.sized(CLIP, world.side, world.side)
  )
  clip_F2 = clip_F2 / world.side
  length = int(rng.integers(SHORTEST, CLIP + 1))
  # Drawn beyond both ends: these are where clips that go on begin and end.
  first = int(rng.integers(-4, CLIP - length + 5))
  first = min(max(first, 0), CLIP - length)
  leg_N2 = clip_F2[first : first + length]
  low_2 = -ROOM / 2 - leg_N2.min(0)
  high_2 = np.maximum(ROOM / 2 - leg_N2.max(0), low_2)
  return leg_N2 + rng.uniform(low_2, high_2)


def _turning(rng, far: float, speed: str) -> int:
  """Frames from the last of one leg to the first of the next."""
  slow = TURN_FRAMES[speed] / TURN_FRAMES['fast']
  drawn = slow * np.exp(rng.uniform(*np.log(TURNS)))
  pace = HURRY * world_lib.SPEEDS[speed] / (CLIP - 1)
  return int(np.ceil(max(drawn, far / pace)))


def _turn(before_N2: np.ndarray, after_N2: np.ndarray, frames: int):
  """The frames between two legs, as fast at both ends as these, (frames - 1,
  2): a polynomial of degree five, unaccelerated where it begins and ends."""
  leaves_2 = frames * (before_N2[-1] - before_N2[-2])
  change_2 = frames * (after_N2[1] - after_N2[0]) - leaves_2
  way_2 = after_N2[0] - before_N2[-1] - leaves_2
  s_N1 = (np.arange(1, frames) / frames)[:, None]
  return (
    before_N2[-1]
    + leaves_2 * s_N1
    + (10 * way_2 - 4 * change_2) * s_N1**3
    + (7 * change_2 - 15 * way_2) * s_N1**4
    + (6 * way_2 - 3 * change_2) * s_N1**5
  )
