import dataclasses
import itertools

import numpy as np
import pytest

from spacetime.data.digits import glyphs, paths, scenes
from spacetime.data.digits import world as world_lib

WORLDS = {
  'default': world_lib.World(),
  'wide': world_lib.World(frames=9, height=48, width=96),
  'crowded': world_lib.World(
    max_characters=6, sizes=('large',), speeds=('fast',)
  ),
  'image': world_lib.World(frames=1, height=40, width=32),
}


def _scenes(world, split, number=150, seed=0):
  rng = np.random.default_rng(seed)
  return [
    scenes.sample_scene(rng, world=world, split=split) for _ in range(number)
  ]


@pytest.mark.parametrize('name', WORLDS)
@pytest.mark.parametrize('split', world_lib.SPLITS)
def test_splits(name, split):
  for scene in _scenes(WORLDS[name], split):
    held_out = [
      world_lib.held_out(c.digit, c.colour, c.motion) for c in scene.characters
    ]
    first = split == 'compositions'
    assert held_out == [first] + [False] * (len(held_out) - 1)
    colours = [c.colour for c in scene.characters]
    assert len(set(colours)) == len(colours)
    for c in scene.characters:
      own = glyphs.indices(c.digit, held_out=split != 'train')
      assert c.glyph in own


@pytest.mark.parametrize('name', WORLDS)
def test_characters_stay_in_the_frame_and_apart(name):
  world = WORLDS[name]
  counts = set()
  for scene in _scenes(world, 'train'):
    counts.add(len(scene.characters))
    seen = paths.trajectories(scene, world)
    half_FP1 = seen.size_FP[..., None] / 2
    assert (seen.centre_FP2 - half_FP1 >= 0).all()
    frame_2 = (world.height, world.width)
    assert (seen.centre_FP2 + half_FP1 <= frame_2).all()
    reach_FP2 = seen.size_FP[..., None] * np.stack(
      [glyphs.extents()[c.glyph] for c in scene.characters]
    )
    for a, b in itertools.combinations(range(len(scene.characters)), 2):
      away_F2 = np.abs(seen.centre_FP2[:, a] - seen.centre_FP2[:, b])
      room_F2 = reach_FP2[:, a] + reach_FP2[:, b]
      assert (away_F2 > room_F2).any(1).all()
  assert {1, 2} <= counts <= set(range(1, world.max_characters + 1))


def test_the_smallest_number_of_characters_is_kept():
  world = world_lib.World(sizes=('small',), min_characters=2)
  generators = [np.random.default_rng(i) for i in range(40)]
  scenes_of_it = [
    scenes.sample_scene(rng, world=world, split='train') for rng in generators
  ]
  assert {len(scene.characters) for scene in scenes_of_it} == {2, 3}
  # Names of files come from the identity: it is that of before.
  assert 'min_characters' not in world_lib.World().identity()
  assert world.identity()['min_characters'] == 2


def test_deterministic_per_seed():
  world = WORLDS['default']
  assert _scenes(world, 'train', 9) == _scenes(world, 'train', 9)
  assert _scenes(world, 'train', 9) != _scenes(world, 'train', 9, seed=1)


def test_the_world_is_used_in_full():
  cast = [
    c for s in _scenes(WORLDS['default'], 'train', 400) for c in s.characters
  ]
  for field, names in (
    ('digit', range(10)),
    ('colour', world_lib.COLOURS),
    ('motion', world_lib.MOTIONS),
    ('size', world_lib.SIZES),
    ('speed', world_lib.SPEEDS),
  ):
    assert {getattr(c, field) for c in cast} == set(names)


def test_cameras():
  seen = [s.camera for s in _scenes(WORLDS['default'], 'train', 600)]
  assert set(seen) == set(world_lib.CAMERAS)
  assert 0.65 < seen.count('still') / 600 < 0.75
  still = world_lib.World(max_characters=1, cameras=('still',))
  assert {s.camera for s in _scenes(still, 'train', 40)} == {'still'}
  zoom = world_lib.World(cameras=('zoom in',))
  assert {s.camera for s in _scenes(zoom, 'train', 40)} == {'zoom in'}


def test_a_pan_is_seen_on_a_ramp():
  for scene in _scenes(WORLDS['default'], 'train', 300):
    if scene.camera in ('pan left', 'pan right'):
      assert scene.background.kind == 'horizontal'
    if scene.camera in ('pan up', 'pan down'):
      assert scene.background.kind == 'vertical'


@pytest.mark.parametrize('camera', world_lib.CAMERAS)
@pytest.mark.parametrize('motion', (*world_lib.MOTIONS, world_lib.WANDERING))
def test_one_character_always_finds_room(camera, motion):
  world = world_lib.World(
    sizes=('large',), speeds=('fast',), motions=(motion,), cameras=(camera,)
  )
  (character, *_) = _scenes(world, 'train', 1)[0].characters
  assert (character.size, character.speed) == ('large', 'fast')


def test_wanderers_differ_and_come_back_from_their_json():
  world = world_lib.World(
    motions=('wandering',), max_characters=1, cameras=('still',)
  )
  drawn = _scenes(world, 'train', 8)
  assert len({scene.characters[0].path_seed for scene in drawn}) == 8
  for scene in drawn:
    again = world_lib.from_json(world_lib.to_json(scene))
    np.testing.assert_array_equal(
      paths.ground_paths(again, world), paths.ground_paths(scene, world)
    )


def test_legs_are_of_training_scenes_alone():
  """Held-out ones stay as they are without: measures on them do, too."""
  world = world_lib.World(
    motions=('wandering',), max_characters=1, cameras=('still',)
  )
  legs = dataclasses.replace(world, legs=1.0)
  assert all(s.characters[0].path_seed < 0 for s in _scenes(legs, 'train', 8))
  some = _scenes(dataclasses.replace(world, legs=0.5), 'train', 40)
  assert 10 < sum(s.characters[0].path_seed < 0 for s in some) < 30
  for split in ('validation', 'compositions'):
    assert _scenes(legs, split, 8) == _scenes(world, split, 8)
  assert world.identity() != legs.identity()
  assert 'legs' not in world.identity()
  (scene,) = _scenes(legs, 'train', 1)
  assert world_lib.from_json(world_lib.to_json(scene)) == scene


def test_unknown_split_and_a_world_without_the_split():
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match="split='test': expected one of"):
    scenes.sample_scene(rng, world=WORLDS['default'], split='test')
  world = world_lib.World(
    digits=(0,), colours=('red',), motions=('left',), max_characters=1
  )
  with pytest.raises(ValueError, match='this world has no such compositions'):
    scenes.sample_scene(rng, world=world, split='compositions')
