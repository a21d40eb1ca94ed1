"""Mixed sizes: draws, stored values, and unchanged records of one size."""

import collections
import dataclasses
import hashlib
import json

import numpy as np
import pytest

from experiments import digits_pixels
from spacetime.config import parse
from spacetime.data.digits import examples, render, tfds
from spacetime.data.digits import world as world_lib
from spacetime.data.resolutions import Sizes
from spacetime.data.sources import digits as digits_source

SMALL = Sizes(frames=(1, 9), height=(16, 48), width=(32, 48), images=0.25)


def test_shapes_are_those_of_the_grid_within_the_bounds():
  assert SMALL.durations == (1, 5, 9)
  assert set(SMALL.sides(5)) == {
    *((16, 32), (32, 32), (32, 48), (48, 32), (48, 48))
  }
  default = Sizes()
  assert default.durations == tuple(range(1, 50, 4))
  sides = {side for side in default.sides(49)}
  assert {(32, 64), (64, 32), (128, 128), (96, 48)} <= sides
  assert not {(32, 80), (128, 48)} & sides
  bounded = Sizes(volume=49 * 64 * 64)
  assert (128, 128) in bounded.sides(9) and (128, 128) not in bounded.sides(13)


def test_a_size_that_is_held_out_is_never_drawn():
  default = Sizes(frames=(1, 5), height=(32, 48), width=(32, 48))
  fewer = dataclasses.replace(default, held_out=[[5, 32, 48]])
  assert fewer.held_out == ((5, 32, 48),)
  assert set(default.shapes) - set(fewer.shapes) == {(5, 32, 48)}
  rng = np.random.default_rng(0)
  assert (5, 32, 48) not in {fewer.draw(rng) for _ in range(400)}
  with pytest.raises(ValueError, match='expected .frames, height, width. each'):
    Sizes(held_out=((5, 32),))


def test_images_by_weight_and_each_duration_alike():
  rng = np.random.default_rng(0)
  drawn = [SMALL.draw(rng) for _ in range(4000)]
  assert set(drawn) == set(SMALL.shapes)
  count = collections.Counter(frames for frames, _, _ in drawn)
  # Five standard deviations of 4000 draws at 0.375 are 0.038.
  for frames, share in ((1, 0.25), (5, 0.375), (9, 0.375)):
    assert abs(count[frames] / 4000 - share) < 0.038


def test_none_or_all_are_images():
  rng = np.random.default_rng(0)
  assert Sizes(images=0.0).durations[0] == 5
  assert Sizes(frames=(1, 1), images=1.0).draw(rng)[0] == 1


@pytest.mark.parametrize('seed', range(3))
def test_a_scene_fits_every_size(seed):
  rng = np.random.default_rng(seed)
  world = world_lib.World(max_characters=3, mixed=Sizes()).drawn(rng)
  record = examples.example(seed, world=world, split='train', seed=1)
  scene = world_lib.from_json(record['scene'])
  assert record['video'].shape == (world.frames, world.height, world.width, 3)
  seen = render.paths.trajectories(scene, world)
  edge_FP1 = seen.size_FP[..., None] / 2
  assert (seen.centre_FP2 - edge_FP1 > 0).all()
  assert (seen.centre_FP2 + edge_FP1 < (world.height, world.width)).all()
  if world.frames == 1:
    assert scene.camera == 'still'


def test_stored_as_they_were_drawn(tmp_path):
  world = world_lib.World(
    frames=5, height=32, width=48, max_characters=1, mixed=SMALL
  )
  path = tfds.prepare(
    str(tmp_path), world=world, train=12, validation=2, seed=3
  )
  records = tfds.source(path, 'train')
  shapes = set()
  for index in range(12):
    truth = examples.example(index, world=world, split='train', seed=3)
    np.testing.assert_array_equal(records[index]['video'], truth['video'])
    scene = world_lib.from_json(records[index]['scene'].decode())
    shape = truth['video'].shape[:3]
    np.testing.assert_array_equal(
      truth['video'], render.clip(scene, world.resized(*shape))
    )
    size = examples.clip_size(index, world=world, split='train', seed=3)
    assert size == shape
    shapes.add(shape)
  assert len(shapes) > 3 and shapes <= set(SMALL.shapes)
  held_out = tfds.source(path, 'validation')
  assert held_out[1]['video'].shape == (5, 32, 48, 3)


def test_worlds_of_one_size_keep_their_names_and_clips():
  """Change these only with a reason to render every data set again."""
  names = {
    'cpu': ('0882b3c60f', '2ce8478a64cb7083'),
    'full': ('d4d7100c7e', 'f89a6d3ae4309b28'),
    'tiny': ('c962011ffb', 'cd1b1d3493085711'),
  }
  for size, (digest, listed) in names.items():
    data = parse.experiment(digits_pixels.get_config(size)).data
    serialized = json.dumps([data.world.identity(), {'train': 3}, 0])
    assert hashlib.sha256(serialized.encode()).hexdigest()[:10] == digest
    assert digits_source.identity(data, seed=0) == listed
  record = examples.example(0, world=world_lib.World(), split='train', seed=3)
  serialized = record['caption'] + record['scene']
  assert (
    hashlib.sha256(serialized.encode()).hexdigest()[:16] == '6c956fc027e63b43'
  )
  mixed = world_lib.World(mixed=SMALL)
  assert mixed.identity()['mixed']['images'] == 0.25
  assert mixed.resized(17, 64, 64) == world_lib.World()


@pytest.mark.parametrize(
  'values, text',
  [
    ({'frames': (2, 4)}, r'frames=\(2, 4\): expected bounds that include'),
    ({'height': (0, 4)}, r'height=\(0, 4\): expected two positive'),
    ({'height': (33, 47)}, r'no clip of 1 frames has height \(33, 47\)'),
    ({'volume': 9}, 'no clip of 1 frames .* 9 pixels'),
    ({'images': 1.5}, r'images=1.5: expected a share, 0 to 1'),
    ({'aspect': 0.5}, 'aspect=0.5'),
  ],
)
def test_refuses(values, text):
  with pytest.raises(ValueError, match=text):
    Sizes(**values)


def test_config_reads_them():
  config = digits_pixels.get_config('tiny')
  with config.unlocked():
    config.data.mixed = dict(frames=[1, 5], images=0.5)
  with pytest.raises(ValueError, match='data.packing=None: expected dict'):
    parse.experiment(config)
  with config.unlocked():
    config.data.packing = dict(kind='rows', length=64, clips=4, frames=8)
  assert parse.experiment(config).data.mixed == Sizes((1, 5), images=0.5)
  config.data.crop = (5, 16, 16)
  with pytest.raises(
    ValueError, match='data.crop=.* expected None with `data.mixed`'
  ):
    parse.experiment(config)
  with config.unlocked():
    config.data.mixed = dict(image=0.5)
  with pytest.raises(ValueError, match='mean data.mixed.images'):
    parse.experiment(config)
