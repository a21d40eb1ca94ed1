"""From a config's data section to records."""

import dataclasses

import numpy as np
import pytest

from experiments import digits
from spacetime.config import parse
from spacetime.data import sources as sources_lib
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.data.digits import world
from spacetime.data.settings import DataConfig
from spacetime.media import video_writer

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


def make_folder(folder, count):
  for i in range(count):
    frames = np.full((5, 16, 24, 3), 10 * i, np.uint8)
    video_writer.write_video(folder / f'clip{i:02d}.mp4', frames, fps=8)
    (folder / f'clip{i:02d}.txt').write_text(f'clip number {i}')
  return dataclasses.replace(DATA, dir=str(folder))


def test_of_a_folder_some_clips_are_held_out(tmp_path):
  sources = sources_lib.open_sources(make_folder(tmp_path, 4), seed=0)
  assert sources.captions == [f'clip number {i}' for i in range(3)]
  assert len(sources.train) == 3 and len(sources.held_out) == 1
  assert sources.held_out[0]['caption'] == 'clip number 3'
  tokenizer = tokenizer_lib.train(sources.captions, vocab_size=300)
  batch = sources_lib.held_out_batch(
    sources.held_out, tokenizer, count=9, length=24
  )
  assert batch['frames'].shape == (1, 5, 16, 24, 3)
  sources_lib.check_captions(sources, tokenizer, length=24)
  with pytest.raises(ValueError, match='the model takes at most 2'):
    sources_lib.check_captions(sources, tokenizer, length=3)
  loader = sources_lib.make_loader(
    dataclasses.replace(DATA, dir=str(tmp_path)),
    sources.train,
    tokenizer,
    length=None,
    seed=0,
  )
  assert np.all(next(iter(loader))['tokens'] == tokenizer_lib.END)


def test_refuses_a_folder_of_one_clip(tmp_path):
  with pytest.raises(ValueError, match='holds 1 clip: expected two or more'):
    sources_lib.open_sources(make_folder(tmp_path, 1), seed=0)


def test_digits_come_rendered_with_their_captions(tmp_path):
  data = dataclasses.replace(DATA, name='digits', dir=str(tmp_path))
  sources = sources_lib.open_sources(data, seed=0)
  assert len(sources.train) == 4 and len(sources.held_out) == 2
  assert all(isinstance(c, str) for c in sources.captions)
  records = sources_lib.first(sources.train, 3)
  assert [r['video'].shape for r in records] == [(5, 16, 24, 3)] * 3


def test_digits_that_are_rendered_live_are_those_of_the_files(tmp_path):
  config = digits.get_config('tiny')
  config.data.dir = str(tmp_path)
  data = parse.experiment(config).data
  files = sources_lib.open_sources(data, seed=2)
  live = sources_lib.open_sources(
    dataclasses.replace(data, render='live'), seed=2
  )
  assert live.captions == files.captions
  for split in ('train', 'held_out'):
    a, b = getattr(files, split), getattr(live, split)
    assert len(a) == len(b)
    np.testing.assert_array_equal(a[1]['video'], b[1]['video'])
  assert sources_lib.caption(live.train, 3) == sources_lib.caption(
    files.train, 3
  )
  names = {
    sources_lib.identity(d, s, seed=2)
    for d, s in (
      (data, files),
      (dataclasses.replace(data, render='live'), live),
    )
  }
  assert len(names) == 1
  for change in ({'render': 'never'}, {'workers': -1}):
    with pytest.raises(ValueError, match='data.(render|workers)=.*expected'):
      dataclasses.replace(data, **change)
