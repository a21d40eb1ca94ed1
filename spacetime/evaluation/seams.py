"""How well two parts of a video join: the step across, against real clips'.

A step is measured in pixels (how much the picture changes from one frame to the
next), in position (how far its characters go) and in velocity (how much their
going changes). Real clips have all three, so that a join is good if its steps
are as large as those within a real clip: a ratio of 1; a bounce is a step in
velocity there, too.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from spacetime.evaluation import segments, world

# Frames on either side of a join that are looked at; velocities are of two.
REACH = 3
MEASURES = ('pixels', 'position', 'velocity')


@dataclasses.dataclass(frozen=True)
class Step:
  """From one frame to the next.

  Attributes:
    pixels: mean absolute difference, in [0, 1].
    position: mean displacement of the characters, in shares of the shorter
      side; NaN where none is seen on both sides.
    velocity: mean change of their displacement, likewise, a frame.
  """

  pixels: float
  position: float
  velocity: float


def step(frames_FHWC: np.ndarray, join: int, *, looped: bool = False) -> Step:
  """The step to a frame from the one before it.

  Args:
    frames_FHWC: uint8.
    join: the first frame after the join; with `looped` 0 is the first frame
      after the last one.
    looped: whether the video is played again and again.

  Raises:
    ValueError: fewer than two frames on a side of the join.
  """
  frames = len(frames_FHWC)
  if looped:
    frames_FHWC = np.roll(frames_FHWC, frames // 2 - join, axis=0)
    join = frames // 2
  if not 2 <= join <= frames - 2:
    raise ValueError(
      f'join={join} of {frames} frames: expected 2 to {frames - 2}'
    )
  before, after = frames_FHWC[join - 1 : join + 1].astype(np.float32) / 255
  near = frames_FHWC[max(0, join - REACH) : join + REACH]
  return Step(
    float(np.abs(after - before).mean()), *_moved(near, min(join, REACH))
  )


def _moved(frames_FHWC: np.ndarray, join: int) -> tuple[float, float]:
  """Steps in position and in velocity, means over the characters."""
  frames, height, width, _ = frames_FHWC.shape
  side = min(height, width)
  chains = world.link_blobs(
    segments.blobs(frames_FHWC), side=side, jump=world.JUMP * side
  )
  displacements, velocities = [], []
  for chain in chains:
    seen = {blob.frame for blob in chain}
    if not {join - 2, join - 1, join, join + 1} <= seen:
      continue
    path_F2 = world.path(chain, frames=frames) / side
    step_F2 = np.diff(path_F2, axis=0)  # step_F2[i] leads to frame i + 1
    displacements.append(np.hypot(*step_F2[join - 1]))
    # The displacement across lies between the one before and the one after: the
    # larger of its changes from either.
    changes = np.diff(step_F2[join - 2 : join + 1], axis=0)
    velocities.append(np.hypot(*changes.T).max())
  if not displacements:
    return np.nan, np.nan
  return float(np.mean(displacements)), float(np.mean(velocities))


def within(clips: Iterable[np.ndarray]) -> list[Step]:
  """Every step inside of clips, what joins are measured against."""
  return [
    step(clip, join) for clip in clips for join in range(2, len(clip) - 1)
  ]


def summarise(joins: Iterable[Step], real: Iterable[Step]) -> dict[str, float]:
  """Means over joins, and their ratios to those of real clips.

  Args:
    joins: at least one.
    real: see `within`.

  Returns:
    Each of MEASURES, 'real/...' of it and 'ratio/...'; 'tracked', the share of
    the joins across which a character was followed: where it is not 1, places
    and velocities are of the others alone.

  Raises:
    ValueError: no joins or no real ones.
  """
  joins, real = list(joins), list(real)
  if not joins or not real:
    raise ValueError(
      f'{len(joins)} joins, {len(real)} real steps: expected at least one each'
    )
  result = {}
  for name in MEASURES:
    mean, usual = (_mean(steps, name) for steps in (joins, real))
    result |= {
      name: mean,
      f'real/{name}': usual,
      f'ratio/{name}': mean / max(usual, 1e-6),
    }
  followed = [not np.isnan(joined.position) for joined in joins]
  return result | {'tracked': float(np.mean(followed))}


def _mean(steps: list[Step], name: str) -> float:
  values = [getattr(one, name) for one in steps]
  values = [value for value in values if not np.isnan(value)]
  return float(np.mean(values)) if values else float('nan')
