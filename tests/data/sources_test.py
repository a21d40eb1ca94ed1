"""Tests of the data sources."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import digits_pixels
from spacetime.config import parse
from spacetime.data import batches
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.data.digits import world
from spacetime.data.settings import DataConfig
from spacetime.media import video_writer
from tests.helpers import bucket

DATA = DataConfig(
  name='folder',
  dir='',
  clips=4,
  held_out_clips=2,
  frames=5,
  height=16,
  width=24,
  world=world.World(),
  batch_size=2,
  caption_dropout=0.0,
  crop=None,
  fps=8,
)


def open_splits(data, seed=0):
  return data.source.open_splits(data, seed=seed)


def make_folder(folder, count):
  for i in range(count):
    frames = np.full((5, 16, 24, 3), 10 * i, np.uint8)
    video_writer.write_video(folder / f'clip{i:02d}.mp4', frames, fps=8)
    (folder / f'clip{i:02d}.txt').write_text(f'clip number {i}')
  return dataclasses.replace(DATA, dir=str(folder))


def test_of_a_folder_some_clips_are_held_out(tmp_path):
  splits = open_splits(make_folder(tmp_path, 4))
  assert splits.captions == [f'clip number {i}' for i in range(3)]
  assert len(splits.train) == 3 and len(splits.held_out) == 1
  assert splits.held_out[0]['caption'] == 'clip number 3'
  tokenizer = tokenizer_lib.train(splits.captions, vocab_size=300)
  batch = batches.held_out_batch(splits.held_out, tokenizer, count=9, length=24)
  assert batch['frames'].shape == (1, 5, 16, 24, 3)
  batches.check_captions(splits.captions, tokenizer, length=24)
  with pytest.raises(ValueError, match='the model takes at most 2'):
    batches.check_captions(splits.captions, tokenizer, length=3)
  loader = batches.make_loader(
    dataclasses.replace(DATA, dir=str(tmp_path)),
    splits.train,
    tokenizer,
    length=None,
    seed=0,
  )
  assert np.all(next(iter(loader))['tokens'] == tokenizer_lib.END)


def test_a_folder_in_a_bucket(tmp_path, monkeypatch):
  here = open_splits(make_folder(tmp_path, 4))
  bucket.in_memory(monkeypatch)
  url = bucket.upload(tmp_path, 'gs://bucket/clips')
  there = open_splits(dataclasses.replace(DATA, dir=url))
  assert there.captions == here.captions and there.identity == here.identity
  assert there.clips.fingerprints == here.clips.fingerprints
  np.testing.assert_array_equal(there.train[1]['video'], here.train[1]['video'])


def test_clips_outside_of_their_folder(tmp_path):
  (tmp_path / 'clips').mkdir()
  make_folder(tmp_path, 3)
  names = ['../clip00.mp4', str(tmp_path / 'clip01.mp4')]
  rows = [json.dumps({'file': n, 'caption': n}) for n in names]
  (tmp_path / 'clips/captions.jsonl').write_text('\n'.join(rows))
  data = dataclasses.replace(DATA, dir=str(tmp_path / 'clips'))
  splits = open_splits(data)
  assert splits.clips.names == ('../clip00.mp4', '../clip01.mp4')
  again = data.source.open_splits(data, seed=0, recorded=splits.clips)
  assert again.train[0]['caption'] == names[0]
  assert again.held_out[0]['caption'] == names[1]
  assert np.abs(again.held_out[0]['video'].astype(int) - 10).max() <= 2


def test_refuses_a_folder_of_one_clip(tmp_path):
  with pytest.raises(ValueError, match='holds 1 clip: expected two or more'):
    open_splits(make_folder(tmp_path, 1))


def test_digits_come_rendered_with_their_captions(tmp_path):
  data = dataclasses.replace(DATA, name='digits', dir=str(tmp_path))
  splits = open_splits(data)
  assert len(splits.train) == 4 and len(splits.held_out) == 2
  assert all(isinstance(c, str) for c in splits.captions)
  records = batches.first(splits.train, 3)
  assert [r['video'].shape for r in records] == [(5, 16, 24, 3)] * 3


def test_digits_that_are_rendered_live_are_those_of_the_files(tmp_path):
  config = digits_pixels.get_config('tiny')
  config.data.dir = str(tmp_path)
  data = parse.experiment(config).data
  files = open_splits(data, seed=2)
  live = open_splits(dataclasses.replace(data, render='live'), seed=2)
  assert live.captions == files.captions
  for split in ('train', 'held_out'):
    a, b = getattr(files, split), getattr(live, split)
    assert len(a) == len(b)
    np.testing.assert_array_equal(a[1]['video'], b[1]['video'])
  assert live.train.caption(3) == files.train.caption(3)
  assert live.identity == files.identity
