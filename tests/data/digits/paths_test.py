import dataclasses

import numpy as np
import pytest

from spacetime.data.digits import motions, paths, wandering
from spacetime.data.digits import world as world_lib
from tests.helpers.digits_cases import CHARACTER, SCENE

WORLD = world_lib.World(frames=17, height=64, width=80)


@pytest.mark.parametrize('speed', world_lib.SPEEDS)
@pytest.mark.parametrize('motion', world_lib.DIRECTIONS)
def test_directions_are_straight_and_even(motion, speed):
  offset_F2 = motions.offsets(motion, speed, world=WORLD)
  np.testing.assert_allclose(
    np.diff(offset_F2, axis=0), np.tile(offset_F2[1], (16, 1)), atol=1e-9
  )
  np.testing.assert_array_equal(
    np.sign(offset_F2[-1]), world_lib.DIRECTIONS[motion]
  )
  distance = np.linalg.norm(offset_F2[-1])
  assert 0.8 <= distance / 16 <= 2
  assert distance >= 12


@pytest.mark.parametrize('speed', world_lib.SPEEDS)
def test_bouncing_hops_upwards_only(speed):
  offset_F2 = motions.offsets('bouncing', speed, world=WORLD)
  assert (offset_F2[:, 1] == 0).all()
  assert (offset_F2[:, 0] <= 0).all() and offset_F2[:, 0].min() < -8
  landings = np.isclose(offset_F2[:, 0], 0, atol=2.5).sum()
  assert landings >= 2


@pytest.mark.parametrize(
  'frames, hops', [(5, (1, 1)), (9, (1, 1)), (11, (2, 2)), (17, (2, 3))]
)
def test_short_clips_have_fewer_hops(frames, hops):
  world = dataclasses.replace(WORLD, frames=frames)
  for speed, number in zip(world_lib.SPEEDS, hops, strict=True):
    height_F = -motions.offsets('bouncing', speed, world=world)[:, 0]
    before_F, middle_F, after_F = height_F[:-2], height_F[1:-1], height_F[2:]
    peaks = (middle_F > before_F + 1e-6) & (middle_F > after_F - 1e-6)
    assert peaks.sum() == number


@pytest.mark.parametrize('speed', world_lib.SPEEDS)
def test_circling_is_one_clockwise_loop(speed):
  offset_F2 = motions.offsets('circling', speed, world=WORLD)
  np.testing.assert_allclose(offset_F2[-1], 0, atol=1e-9)
  assert offset_F2[4, 1] > 3  # Rightwards from the top: clockwise.
  centre_2 = (offset_F2.min(0) + offset_F2.max(0)) / 2
  radius_F = np.linalg.norm(offset_F2 - centre_2, axis=1)
  np.testing.assert_allclose(radius_F, radius_F[0], rtol=1e-6)


def test_still_is_still_and_an_unknown_motion_an_error():
  assert not motions.offsets('still', 'fast', world=WORLD).any()
  with pytest.raises(ValueError, match="motion='warp': expected one of"):
    motions.offsets('warp', 'fast', world=WORLD)
  with pytest.raises(ValueError, match="camera='orbit': expected one of"):
    paths.view('orbit', world=WORLD)


@pytest.mark.parametrize('camera', world_lib.CAMERAS)
def test_unproject_inverts_project(camera):
  lens = paths.view(camera, world=WORLD)
  point_PF2 = np.random.default_rng(0).uniform(0, 64, (3, 17, 2))
  np.testing.assert_allclose(
    lens.unproject(lens.project(point_PF2)), point_PF2, atol=1e-9
  )


def test_a_pan_to_the_left_moves_the_ground_to_the_right():
  still = dataclasses.replace(CHARACTER, motion='still')
  scene = dataclasses.replace(SCENE, characters=(still,))
  seen = paths.trajectories(scene, WORLD)
  np.testing.assert_allclose(seen.centre_FP2[0, 0], CHARACTER.start)
  direction_2 = seen.centre_FP2[-1, 0] - seen.centre_FP2[0, 0]
  np.testing.assert_allclose(direction_2, (0, paths.PAN * 64))
  ground_FP2 = paths.ground_paths(scene, WORLD)
  np.testing.assert_allclose(ground_FP2, np.tile(still.start, (17, 1, 1)))


def test_zooming_in_magnifies():
  scene = dataclasses.replace(SCENE, camera='zoom in')
  size_F = paths.trajectories(scene, WORLD).size_FP[:, 0]
  assert (np.diff(size_F) > 0).all()
  assert size_F[0] == pytest.approx(16)
  assert size_F[-1] == pytest.approx(16 * paths.ZOOM)


@pytest.mark.parametrize('speed', world_lib.SPEEDS)
@pytest.mark.parametrize('frames', [1, 5, 17, 97])
def test_wandering_is_smooth_and_stays_within_its_room(frames, speed):
  world = dataclasses.replace(WORLD, frames=frames)
  for path_seed in range(20):
    offset_F2 = wandering.offsets(path_seed, speed, world=world)
    assert offset_F2.shape == (frames, 2) and not offset_F2[0].any()
    assert (np.ptp(offset_F2, axis=0) <= wandering.ROOM * 64 + 1e-9).all()
    # A bounce turns at once, by up to 14 pixels a frame; these curves do not.
    turns = np.abs(np.diff(offset_F2, 2, axis=0))
    assert frames < 3 or turns.max() < (4 if speed == 'fast' else 1.5)


def test_wandering_hangs_on_its_number_and_keeps_its_pace():
  short, long = (
    [
      wandering.offsets(
        path_seed, 'fast', world=dataclasses.replace(WORLD, frames=n)
      )
      for path_seed in range(40)
    ]
    for n in (17, 97)
  )
  assert not np.allclose(short[0], short[1])
  pace = [
    np.mean(
      [np.hypot(*np.diff(curve_F2, axis=0).T).mean() for curve_F2 in curves]
    )
    for curves in (short, long)
  ]
  assert 0.7 < pace[1] / pace[0] < 1.4


@pytest.mark.parametrize('speed', world_lib.SPEEDS)
@pytest.mark.parametrize('frames', [1, 5, 17, 97])
def test_legs_stay_within_the_room_and_hang_on_their_number(frames, speed):
  world = dataclasses.replace(WORLD, frames=frames)
  curves = [wandering.offsets(-1 - n, speed, world=world) for n in range(40)]
  for offset_F2 in curves:
    assert offset_F2.shape == (frames, 2) and not offset_F2[0].any()
    assert (np.ptp(offset_F2, axis=0) <= wandering.ROOM * 64 + 1e-9).all()
  again = wandering.offsets(-1, speed, world=world)
  np.testing.assert_array_equal(curves[0], again)
  assert frames == 1 or not np.allclose(curves[0], curves[1])


def test_legs_are_pieces_of_other_motions_at_the_pace_of_a_short_clip():
  """In a longer clip, whose own straight curves are slow."""
  world = dataclasses.replace(WORLD, frames=49)
  straight = {
    tuple(step_2)
    for motion in world_lib.DIRECTIONS
    for step_2 in _steps(motions.offsets(motion, 'fast', world=WORLD))
  }
  curves = [
    wandering.offsets(path_seed, 'fast', world=world)
    for path_seed in range(-60, 0)
  ]
  # Those that had to be made smaller are slower.
  unclipped = [
    offset_F2 for offset_F2 in curves if np.ptp(offset_F2, axis=0).max() < 31.9
  ]
  assert len(unclipped) > 20
  straight_legs = [
    bool(straight & set(_steps(offset_F2))) for offset_F2 in unclipped
  ]
  assert np.mean(straight_legs) > 0.6


def _steps(curve_F2):
  return [tuple(step) for step in np.round(np.diff(curve_F2, axis=0), 6)]


def test_turns_between_legs_are_smooth():
  """Nothing but a hop changes its speed by much from frame to frame: a turn
  leaves its leg, and meets the next, as fast as they are."""
  world = dataclasses.replace(WORLD, frames=97)
  changes = [
    np.abs(np.diff(wandering.offsets(path_seed, 'fast', world=world)[:, 1], 2))
    for path_seed in range(-200, 0)
  ]  # along x, where nothing hops
  assert np.quantile(changes, 0.99) < 1.5
  assert np.max(changes) < 3
