import itertools

import pytest

from spacetime.data.digits import world as world_lib
from tests.helpers.digits_cases import SCENE


def test_json_round_trip():
  assert world_lib.from_json(world_lib.to_json(SCENE)) == SCENE


@pytest.mark.parametrize('text', ['nonsense', '{}', '{"characters": [1]}'])
def test_json_of_something_else(text):
  with pytest.raises(ValueError, match='expected the JSON of to_json'):
    world_lib.from_json(text)


def test_a_twentieth_of_the_compositions_is_held_out():
  triples = itertools.product(range(10), world_lib.COLOURS, world_lib.MOTIONS)
  held_out = [t for t in triples if world_lib.held_out(*t)]
  assert len(held_out) == 45
  # Each digit, colour and motion is among them ...
  for axis, number in ((0, 10), (1, 8), (2, 11)):
    assert len({t[axis] for t in held_out}) == number
  # ... and no pair of them is held out entirely, or nearly so.
  for a, b in ((0, 1), (0, 2), (1, 2)):
    pairs = [(t[a], t[b]) for t in held_out]
    assert max(map(pairs.count, pairs)) == 1
  ways = itertools.product(range(10), world_lib.COLOURS, ['wandering'])
  assert sum(world_lib.held_out(*t) for t in ways) == 5


def test_wandering_is_of_worlds_that_name_it_and_is_not_judged():
  assert world_lib.WANDERING not in world_lib.World().motions
  world = world_lib.World(motions=('wandering', 'left', 'wandering', 'up'))
  assert world.without_wandering().motions == ('left', 'up')
  with pytest.raises(ValueError, match='data.world.motions'):
    world_lib.World(motions=('strolling',))


@pytest.mark.parametrize(
  'sizes, text',
  [
    ({'frames': 0}, 'frames=0: expected at least 1; change data.frames'),
    ({'height': 8}, 'height=8: expected at least 16'),
    ({'width': 15}, 'width=15: expected at least 16'),
    ({'max_characters': 9}, 'max_characters=9: expected 1 to 8'),
    ({'max_characters': 0}, 'max_characters=0: expected 1 to 8'),
    ({'min_characters': 4}, 'min_characters=4: expected 1 to 3'),
    ({'colours': ('mauve',)}, r"colours=\('mauve',\): expected some of"),
    ({'cameras': ()}, r'cameras=\(\): expected some of'),
    ({'still_camera': 1.5}, r'still_camera=1.5: expected a probability'),
    ({'legs': -0.1}, r'legs=-0.1: expected a probability'),
  ],
)
def test_world_refuses(sizes, text):
  with pytest.raises(ValueError, match=text):
    world_lib.World(**sizes)


def test_nothing_moves_in_an_image():
  world = world_lib.World(frames=1, motions=('left',), cameras=('zoom in',))
  assert world.active_motions == ('still',)
  assert world.active_cameras == ('still',)
