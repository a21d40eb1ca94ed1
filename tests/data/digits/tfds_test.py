"""Tests of the digits world as a TFDS data set."""

import pathlib
import sys

import numpy as np
import pytest

from spacetime.data.digits import captions, examples, render, tfds, world

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
    truth = examples.example(index, world=WORLD, split=split, seed=4)
    np.testing.assert_array_equal(record['video'], truth['video'])
    assert record['video'].shape == (5, 32, 40, 3)
    assert record['caption'].decode() == truth['caption']
    scene = world.from_json(record['scene'].decode())
    np.testing.assert_array_equal(record['video'], render.clip(scene, WORLD))
    text = record['caption'].decode()
    assert all(captions.named(text, c) for c in scene.characters)


def test_live_records_are_those_of_the_files(path):
  source = tfds.source(path, 'train')
  live = examples.LiveExamples(WORLD, 'train', len(source), 4)
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
    return examples.example(0, **arguments)['video']

  np.testing.assert_array_equal(video(), video())
  assert (video() != video(seed=5)).any()
  assert (video() != video(split='validation')).any()


def test_a_second_prepare_reuses_the_first(path, monkeypatch):
  monkeypatch.setattr(examples, 'example', None)
  folder = pathlib.Path(path).parents[2]
  again = tfds.prepare(str(folder), world=WORLD, seed=4, **CLIPS)
  assert again == path


def test_an_interrupted_run_continues(tmp_path, monkeypatch):
  """Complete files are kept, and all records are those of the examples."""

  def dies(index, *, split, **_):
    if (split, index) == ('train', 5):
      raise KeyboardInterrupt
    rendered.append((split, index))
    return real(index, split=split, **_)

  rendered, real = [], examples.example
  monkeypatch.setattr(tfds, 'SHARD', 2)
  monkeypatch.setattr(tfds, '_cores', lambda: 1)
  monkeypatch.setattr(examples, 'example', dies)
  with pytest.raises(KeyboardInterrupt):
    tfds.prepare(str(tmp_path), world=WORLD, seed=4, **CLIPS)
  assert not list(tmp_path.rglob(tfds.INFO))
  assert [index for _, index in rendered] == [0, 1, 2, 3, 4]
  rendered.clear()
  monkeypatch.setattr(
    examples,
    'example',
    lambda i, **_: rendered.append((_['split'], i)) or real(i, **_),
  )
  path = tfds.prepare(str(tmp_path), world=WORLD, seed=4, **CLIPS)
  assert [i for split, i in rendered if split == 'train'] == [4, 5, 6]
  records = tfds.source(path, 'train')
  for i in range(CLIPS['train']):
    truth = real(i, world=WORLD, split='train', seed=4)
    np.testing.assert_array_equal(records[i]['video'], truth['video'])
    assert records.caption(i) == truth['caption']


@pytest.mark.slow
def test_processes_write_the_same_files(path, tmp_path, monkeypatch):
  monkeypatch.setattr(tfds, 'SHARD', 3)
  monkeypatch.setattr(tfds, '_cores', lambda: 2)
  other = tfds.prepare(str(tmp_path), world=WORLD, seed=4, **CLIPS)
  for split in CLIPS:
    ours, theirs = tfds.source(other, split), tfds.source(path, split)
    assert len(ours) == len(theirs)
    for i in range(len(ours)):
      assert ours[i]['video'].tobytes() == theirs[i]['video'].tobytes()
      assert ours[i]['scene'] == theirs[i]['scene']


def test_no_tensorflow(path):
  tfds.source(path, 'train')[0]
  assert 'tensorflow' not in sys.modules


def test_refusals(path, tmp_path):
  with pytest.raises(ValueError, match='data.clips=0: expected 1 or more'):
    tfds.prepare(str(tmp_path), world=WORLD, train=0, validation=1)
  with pytest.raises(ValueError, match='data.held_out_clips=-1: expected 0'):
    tfds.prepare(str(tmp_path), world=WORLD, train=1, validation=-1)
  with pytest.raises(ValueError, match='seed=-1: expected 0 or more'):
    tfds.prepare(str(tmp_path), world=WORLD, train=1, validation=1, seed=-1)
  with pytest.raises(ValueError, match='expected the folder of a data set'):
    tfds.source(str(tmp_path), 'train')
  with pytest.raises(ValueError, match="split='test': expected one of"):
    tfds.source(path, 'test')
