"""Smoothness of joins between two parts of a video, relative to real clips.

The step across a join is measured in pixels (change of the picture from one
frame to the next), in position (displacement of the characters) and in velocity
(change of that displacement). Steps of real clips are not zero, so a join is
good if its steps are as large as those within real clips: a ratio of 1.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from spacetime.evaluation import segments, world

# Frames on either side of a join that are measured.
REACH = 3
MEASURES = ('pixels', 'position', 'velocity')


@dataclasses.dataclass(frozen=True)
class Step:
  """The change from one frame to the next.

  Attributes:
    pixels: mean absolute difference, in [0, 1].
    position: mean displacement of the characters, in units of the shorter
      side; NaN if no character is visible on both sides.
    velocity: mean change of that displacement, in the same units per frame.
  """

  pixels: float
  position: float
  velocity: float


def step(frames_FHWC: np.ndarray, join: int, *, looped: bool = False) -> Step:
  """Measures the step between a frame and the one before it.

  Args:
    frames_FHWC: uint8.
    join: first frame after the join; 0 in a loop is the join of the last frame
      to the first.
    looped: whether the video is a loop.

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
    float(np.abs(after - before).mean()), *_motion_steps(near, min(join, REACH))
  )


def _motion_steps(frames_FHWC: np.ndarray, join: int) -> tuple[float, float]:
  """Mean steps in position and in velocity over the characters."""
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
    # The larger of the changes from the displacement before the join and to the
    # displacement after it.
    changes = np.diff(step_F2[join - 2 : join + 1], axis=0)
    velocities.append(np.hypot(*changes.T).max())
  if not displacements:
    return np.nan, np.nan
  return float(np.mean(displacements)), float(np.mean(velocities))


def within(clips: Iterable[np.ndarray]) -> list[Step]:
  """All steps within clips, the reference for joins."""
  return [
    step(clip, join) for clip in clips for join in range(2, len(clip) - 1)
  ]


def summarise(joins: Iterable[Step], real: Iterable[Step]) -> dict[str, float]:
  """Means over joins, and their ratios to the means over real clips.

  Args:
    joins: steps across joins, at least one.
    real: steps within real clips, at least one; see `within`.

  Returns:
    Each of MEASURES, with 'real/' and 'ratio/' variants; and 'tracked', the
    share of joins across which a character was tracked: position and velocity
    are means over these joins only.

  Raises:
    ValueError: no joins, or no real steps.
  """
  joins, real = list(joins), list(real)
  if not joins or not real:
    raise ValueError(
      f'{len(joins)} joins, {len(real)} real steps: expected at least one each'
    )
  result = {}
  for name in MEASURES:
    mean, reference = (_mean(steps, name) for steps in (joins, real))
    result |= {
      name: mean,
      f'real/{name}': reference,
      f'ratio/{name}': mean / max(reference, 1e-6),
    }
  tracked = [not np.isnan(joined.position) for joined in joins]
  return result | {'tracked': float(np.mean(tracked))}


def _mean(steps: list[Step], name: str) -> float:
  values = [getattr(one, name) for one in steps]
  values = [value for value in values if not np.isnan(value)]
  return float(np.mean(values)) if values else float('nan')
