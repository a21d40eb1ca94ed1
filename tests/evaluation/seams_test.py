"""The seam score: known steps, and joins that are good and bad."""

import numpy as np
import pytest

from spacetime.data.digits import examples, world
from spacetime.evaluation import seams

RED = world.COLOURS['red']
WORLD = world.World(
  frames=17,
  height=64,
  width=64,
  max_characters=1,
  sizes=('medium', 'large'),
  speeds=('fast',),
  cameras=('still',),
)


def squares(places, size=10):
  """A red square with its corner at each (y, x)."""
  frames = np.full((len(places), 64, 80, 3), 20, np.uint8)
  for frame, (y, x) in zip(frames, places, strict=True):
    frame[y : y + size, x : x + size] = RED
  return frames


def test_known_steps():
  xs = [4, 7, 10, 13, 18, 21, 24, 27]
  measured = seams.step(squares([(20, x) for x in xs]), 4)
  np.testing.assert_allclose(measured.position, 5 / 64, atol=1e-3)
  np.testing.assert_allclose(measured.velocity, 2 / 64, atol=1e-3)
  # Five columns of the square are left, five entered.
  changed = 2 * 5 * 10 * np.abs(np.float32(RED) - 20).mean() / 255 / (64 * 80)
  np.testing.assert_allclose(measured.pixels, changed, rtol=1e-5)
  even = seams.step(squares([(20 + 2 * i, 8) for i in range(8)]), 4)
  np.testing.assert_allclose(even.position, 2 / 64, atol=1e-3)
  assert even.velocity < 1e-3


def test_a_turn_is_a_step_in_velocity_alone():
  xs = [4, 8, 12, 16, 12, 8, 4, 0]
  measured = seams.step(squares([(20, x) for x in xs]), 4)
  np.testing.assert_allclose(measured.position, 4 / 64, atol=1e-3)
  np.testing.assert_allclose(measured.velocity, 8 / 64, atol=1e-3)


def test_a_loop_joins_its_end_to_its_beginning():
  xs = [4, 8, 12, 16, 20, 16, 12, 8]
  frames = squares([(20, x) for x in xs])
  measured = seams.step(frames, 0, looped=True)
  np.testing.assert_allclose(measured.position, 4 / 64, atol=1e-3)
  apart = seams.step(frames[:5], 0, looped=True)
  np.testing.assert_allclose(apart.position, 16 / 64, atol=1e-3)


def test_bad_joins_of_real_clips_have_high_ratios():
  clips = [
    examples.example(i, world=WORLD, split='train', seed=5)['video']
    for i in range(6)
  ]
  real = seams.within(clips)
  assert len(real) == 6 * 14

  def ratios(joined, join):
    summary = seams.summarise([seams.step(v, join) for v in joined], real)
    return summary, [summary[f'ratio/{name}'] for name in seams.MEASURES]

  summary, good = ratios(clips, 8)
  assert summary['tracked'] == 1
  np.testing.assert_allclose(good, 1, atol=0.5)
  # Four frames are missing.
  cut = [np.concatenate([v[:6], v[10:]]) for v in clips]
  summary, bad = ratios(cut, 6)
  assert bad[0] > 1.5 and bad[1] > 2 and bad[2] > 1.5
  # One clip after another: mostly nobody to follow across.
  cut = [
    np.concatenate([a[:8], b[8:]])
    for a, b in zip(clips, clips[1:], strict=False)
  ]
  summary, bad = ratios(cut, 8)
  assert bad[0] > 3


def test_nobody_to_follow():
  frames = np.full((8, 64, 64, 3), 20, np.uint8)
  measured = seams.step(frames, 4)
  assert measured.pixels == 0 and np.isnan(measured.position)
  summary = seams.summarise([measured], [seams.Step(0.1, 0.2, 0.3)])
  assert summary['tracked'] == 0 and summary['ratio/pixels'] == 0


def test_refuses():
  frames = np.zeros((8, 16, 16, 3), np.uint8)
  for join in (1, 7):
    with pytest.raises(ValueError, match=f'join={join} of 8 frames: expected'):
      seams.step(frames, join)
  with pytest.raises(ValueError, match='0 joins, 0 real steps: expected at'):
    seams.summarise([], [])
