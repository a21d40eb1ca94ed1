import pathlib
import sys

import numpy as np
import pytest

from spacetime.data.digits import captions, render, tfds, world

WORLD = world.World(frames=5, height=32, width=40, max_characters=2)
CLIPS = {'train': 7, 'validation': 3, 'compositions': 2}


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  folder = tmp_path_factory.mktemp('digits')
  return tfds.prepare(str(folder), world=WORLD, seed=4, **CLIPS)


@pytest.mark.parametrize('split', CLIPS)
def test_round_trip(path, split):
  records = tfds.source(path, split)
  assert len(records) == CLIPS[split]
  for index in reversed(range(len(records))):
    record = records[index]
    truth = tfds.example(index, world=WORLD, split=split, seed=4)
    np.testing.assert_array_equal(record['video'], truth['video'])
    assert record['video'].shape == (5, 32, 40, 3)
    assert record['caption'].decode() == truth['caption']
    scene = world.from_json(record['scene'].decode())
    np.testing.assert_array_equal(record['video'], render.clip(scene, WORLD))
    text = record['caption'].decode()
    assert all(captions.named(text, c) for c in scene.characters)


def test_live_records_are_those_of_the_files(path):
  source = tfds.source(path, 'train')
  live = tfds.Live(WORLD, 'train', len(source), 4)
  assert len(live) == len(source)
  for i in (0, len(source) - 1):
    record = live[i]
    np.testing.assert_array_equal(record['video'], source[i]['video'])
    assert record['caption'] == source[i]['caption'].decode()
    assert record['caption'] == live.caption(i)
    assert record['scene'] == source[i]['scene'].decode()


def test_seeds_and_splits_differ():
  def video(**change):
    arguments = {'world': WORLD, 'split': 'train', 'seed': 4, **change}
    return tfds.example(0, **arguments)['video']

  np.testing.assert_array_equal(video(), video())
  assert (video() != video(seed=5)).any()
  assert (video() != video(split='validation')).any()


def test_a_second_prepare_reuses_the_first(path, monkeypatch):
  monkeypatch.setattr(tfds, 'example', None)
  folder = pathlib.Path(path).parents[2]
  again = tfds.prepare(str(folder), world=WORLD, seed=4, **CLIPS)
  assert again == path


def test_a_killed_build_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
  def dies(index, **_):
    if index == 2:
      raise KeyboardInterrupt
    return real(index, **_)

  real = tfds.example
  monkeypatch.setattr(tfds, 'example', dies)
  with pytest.raises(KeyboardInterrupt):
    tfds.prepare(str(tmp_path), world=WORLD, seed=4, **CLIPS)
  assert not list(tmp_path.rglob('1.0.0'))
  monkeypatch.setattr(tfds, 'example', real)
  path = tfds.prepare(str(tmp_path), world=WORLD, seed=4, **CLIPS)
  assert len(tfds.source(path, 'train')) == 7


def test_no_tensorflow(path):
  tfds.source(path, 'train')[0]
  assert 'tensorflow' not in sys.modules


def test_refusals(path, tmp_path):
  with pytest.raises(ValueError, match='train=0: expected at least 1 clips'):
    tfds.prepare(str(tmp_path), world=WORLD, train=0, validation=1)
  with pytest.raises(ValueError, match='validation=-1: expected at least 0'):
    tfds.prepare(str(tmp_path), world=WORLD, train=1, validation=-1)
  with pytest.raises(ValueError, match='seed=-1: expected at least 0'):
    tfds.prepare(str(tmp_path), world=WORLD, train=1, validation=1, seed=-1)
  with pytest.raises(ValueError, match='expected the folder of a data set'):
    tfds.source(str(tmp_path), 'train')
  with pytest.raises(ValueError, match="split='test': expected one of"):
    tfds.source(path, 'test')
