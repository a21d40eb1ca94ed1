"""Clips that cannot be read, and folders that change between two starts."""

import dataclasses
import json
import logging
import pickle

import numpy as np
import pytest

from spacetime import SettingError
from spacetime.config import parse
from spacetime.data import batches, clip_list, unreadable, video_folder
from spacetime.data import splits as splits_lib
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.data.sources import cache
from spacetime.training import clips
from tests.data import sources_test
from tests.helpers import videos

SIZE = {'frames': 12, 'height': 32, 'width': 48, 'fps': 10}


def write_clip(folder, number, level=None):
  """A clip of one gray level, which tells its number."""
  level = 10 * number if level is None else level
  frames = np.full((12, 32, 48, 3), level, np.uint8)
  videos.lossless(folder / f'clip{number:02d}.mkv', frames)
  (folder / f'clip{number:02d}.txt').write_text(f'clip number {number}')


def numbers(batch):
  levels_B = np.asarray(batch['frames'])[:, 0, 0, 0, 0]
  return (levels_B / 10).round().astype(int).tolist()


def section(folder, **changes):
  values = {'dir': str(folder), 'batch_size': 1} | SIZE | changes
  return dataclasses.replace(sources_test.DATA, **values)


def loader(data, splits, seed=0):
  tokenizer = tokenizer_lib.train(splits.captions, vocab_size=300)
  return batches.make_loader(
    data, splits.train, tokenizer, length=24, seed=seed
  )


def make_bad(folder, kind):
  """A file that is no clip, with a caption: (path, part of the message)."""
  path = folder / f'clip03x{".mp4" if kind == "cut" else ".mkv"}'
  if kind == 'cut':
    videos.cut_short(path)
    message = 'cannot be read as a video|is too short'
  elif kind == 'long sound':
    videos.long_sound(path)
    message = 'too short: expected 12 frames'
  elif kind == 'late':  # its duration may count from 0
    times = [100 + i for i in range(6)]
    videos.lossless(path, videos.gray_clip(6), times=times)
    message = 'too short: expected 12 frames'
  else:
    videos.sound_only(path)
    message = 'no video stream'
  path.with_suffix('.txt').write_text('bad')
  return path, message


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['cut', 'long sound', 'late', 'sound'])
def test_a_bad_clip_is_skipped_and_counted(tmp_path, kind, caplog):
  """The next clip takes its turns, at the same places at every start."""
  for i in range(8):
    write_clip(tmp_path, i)
  path, message = make_bad(tmp_path, kind)
  data = section(tmp_path)
  splits = data.source.open_splits(data, seed=0)
  assert len(splits.train) == 8 and len(splits.held_out) == 1
  bad = 4  # behind clip03
  with pytest.raises(ValueError, match=message):
    splits.train[bad]
  iterator = iter(loader(data, splits))
  report = unreadable.Report(splits.train, share=data.max_unreadable)
  with caplog.at_level(logging.WARNING):
    taken = [report.take(next(iterator)) for _ in range(5)]
    state = json.loads(json.dumps(iterator.get_state()))
    taken += [report.take(next(iterator)) for _ in range(11)]
  assert all(set(batch) == {'frames', 'tokens'} for batch in taken)
  seen = [numbers(batch)[0] for batch in taken]
  # Two epochs: clip 4 is there twice an epoch, with its own caption.
  assert sorted(seen) == sorted([0, 1, 2, 3, 4, 4, 5, 6] * 2)
  assert report.clips == {bad: 2}
  assert path.name in caplog.text and caplog.text.count(': skipped') == 1
  assert (
    '1 of 8 clips could not be read and were skipped, 2 t' in report.summary
  )
  again = iter(loader(data, data.source.open_splits(data, seed=0)))
  again.set_state(state)
  for batch in taken[5:]:
    np.testing.assert_array_equal(next(again)['frames'], batch['frames'])


def test_batches_of_good_clips_report_nothing(tmp_path):
  for i in range(3):
    write_clip(tmp_path, i)
  data = section(tmp_path)
  splits = data.source.open_splits(data, seed=0)
  report = unreadable.Report(splits.train, share=0.2)
  report.take(next(iter(loader(data, splits))))
  assert report.summary == '' and not report.clips


def test_more_bad_clips_than_the_limit_end_the_run(tmp_path):
  for i in range(6):
    write_clip(tmp_path, i)
  for i in (1, 2):
    videos.long_sound(tmp_path / f'clip{i:02d}.mkv')
  data, lenient = section(tmp_path), section(tmp_path, max_unreadable=0.5)
  report = unreadable.Report(
    lenient.source.open_splits(lenient, seed=0).train, share=0.2
  )
  report.take({unreadable.KEY: np.array([0, 2], np.int32)})
  with pytest.raises(
    ValueError,
    match='clip02.mkv is too short.*; 2 of 5 clips cannot be read: expected at '
    'most 1 .`max_unreadable`=0.2',
  ):
    report.take({unreadable.KEY: np.array([3], np.int32)})
  # The same when the folder is opened.
  with pytest.raises(ValueError, match='2 of 6 clips cannot be read: expected'):
    data.source.open_splits(data, seed=0)
  none = dataclasses.replace(data, max_unreadable=0.0)
  with pytest.raises(ValueError, match='clip01.mkv is too short: expected 12'):
    none.source.open_splits(none, seed=0)
  for value in (-0.1, 1.0):
    with pytest.raises(
      SettingError, match='data.max_unreadable=.*: expected 0'
    ):
      dataclasses.replace(data, max_unreadable=value)


def test_where_nothing_can_be_read_there_is_no_batch():
  class Broken:
    def __len__(self):
      return 3

    def __getitem__(self, index):
      raise unreadable.UnreadableClipError(f'{index} is gone')

  with pytest.raises(ValueError, match='is gone; none of the 3 clips can be'):
    unreadable.Replaced(Broken())[1]
  with pytest.raises(ValueError, match='is gone; none of 3 clips can be read'):
    batches.first(Broken(), 2)


def test_other_errors_of_a_source_are_not_skipped():
  class Damaged:
    def __len__(self):
      return 3

    def __getitem__(self, index):
      raise ValueError(f'record {index} is not finite')

  with pytest.raises(ValueError, match='^record 1 is not finite$'):
    unreadable.Replaced(Damaged())[1]
  with pytest.raises(ValueError, match='^record 0 is not finite$'):
    batches.first(Damaged(), 2)


def test_held_out_clips_that_cannot_be_read_are_left_out(tmp_path):
  for i in range(3):
    write_clip(tmp_path, i)
  videos.long_sound(tmp_path / 'clip00.mkv')
  folder = video_folder.ClipFolder(tmp_path, **SIZE, max_unreadable=0.5)
  records = batches.first(pickle.loads(pickle.dumps(folder)), 2)
  assert [clip['caption'] for clip in records] == [
    'clip number 1',
    'clip number 2',
  ]


# -- a folder that changes -----------------------------------------------------


@pytest.fixture
def twelve(tmp_path):
  """A folder of twelve clips, a run's folder that has its list, and the data's
  section: after six of eleven steps."""
  folder, workdir = tmp_path / 'clips', tmp_path / 'run'
  folder.mkdir()
  for i in range(12):
    write_clip(folder, i)
  experiment = experiment_of(folder)
  splits = clips.open_splits(experiment, workdir, embedded=False)
  clips.save(experiment, workdir, splits)
  iterator = iter(loader(experiment.data, splits))
  first = [numbers(next(iterator))[0] for _ in range(6)]
  state = iterator.get_state()
  rest = [numbers(next(iterator))[0] for _ in range(5)]
  assert sorted(first + rest) == list(range(11))
  return folder, workdir, state, rest


def experiment_of(folder, **changes):
  return dataclasses.replace(
    parse.experiment({'stage': 'diffusion', 'seed': 0}),
    data=section(folder, **changes),
  )


def resumed(folder, workdir, state, steps=5, **changes):
  experiment = experiment_of(folder, **changes)
  splits = clips.open_splits(experiment, workdir, embedded=False)
  clips.save(experiment, workdir, splits)
  iterator = iter(loader(experiment.data, splits))
  iterator.set_state(state)
  return [numbers(next(iterator))[0] for _ in range(steps)], splits


def test_an_unchanged_folder_says_nothing(twelve, caplog):
  folder, workdir, state, rest = twelve
  assert resumed(folder, workdir, state)[0] == rest
  assert not caplog.text


def test_a_removed_clip_moves_no_other(twelve, caplog):
  folder, workdir, state, rest = twelve
  gone = rest[1]
  for path in folder.glob(f'clip{gone:02d}.*'):
    path.unlink()
  after, splits = resumed(folder, workdir, state)
  expected = [(gone + 1) % 11 if n == gone else n for n in rest]
  assert after == expected
  assert splits.held_out[0]['caption'] == 'clip number 11'
  assert (
    f'1 removed (clip{gone:02d}.mkv); the run keeps its list' in caplog.text
  )
  with pytest.raises(ValueError, match='is no longer there'):
    splits.train[gone]


def test_an_added_clip_is_left_out_and_a_changed_one_reported(twelve, caplog):
  folder, workdir, state, rest = twelve
  write_clip(folder, 5, level=200)
  (folder / 'clip05.txt').write_text('another caption')
  for name in ('a', 'b', 'c', 'd'):
    write_clip(folder, 0)
    (folder / 'clip00.mkv').rename(folder / f'{name}.mkv')
    (folder / f'{name}.txt').write_text('new')
  write_clip(folder, 0)
  after, splits = resumed(folder, workdir, state)
  assert after == [20 if n == 5 else n for n in rest]
  assert len(splits.train) == 11
  assert '4 added (a.mkv, b.mkv, c.mkv and 1 more)' in caplog.text
  assert '1 changed (clip05.mkv)' in caplog.text


def test_changes_can_be_adopted(twelve, caplog):
  folder, workdir, state, _ = twelve
  for path in folder.glob('clip00.*'):
    path.unlink()
  after, splits = resumed(folder, workdir, state, steps=10, changes='adopt')
  assert len(splits.train) == 10 and 0 not in after
  assert 'takes the clips as they are, in a new order' in caplog.text
  caplog.clear()
  # From now on that is the list of the run.
  assert resumed(folder, workdir, state, steps=10)[0] == after
  assert not caplog.text


def test_another_folder_is_refused(twelve, tmp_path):
  _, workdir, state, _ = twelve
  other = tmp_path / 'other'
  other.mkdir()
  for i in range(20, 26):
    write_clip(other, i, level=9)
  with pytest.raises(
    ValueError,
    match='clip00.mkv is no longer there; restore the clips that the run began '
    "with, or set `changes` to 'adopt'.*; 12 of 12 clips cannot be read",
  ):
    resumed(other, workdir, state)
  resumed(other, workdir, state, changes='adopt')
  with pytest.raises(SettingError, match="data.changes='x': expected one of"):
    section(other, changes='x')


def test_a_damaged_list_is_refused(twelve):
  folder, workdir, state, _ = twelve
  (workdir / clip_list.FILE).write_text('{"names": 3}')
  with pytest.raises(ValueError, match='clips.json cannot be read .not a list'):
    resumed(folder, workdir, state)


def test_a_cache_of_other_clips_is_refused(tmp_path, monkeypatch):
  def open_splits(data, *, recorded, **arguments):
    return dataclasses.replace(
      splits, clips=clip_list.ClipList(identity.pop(0))
    )

  monkeypatch.setattr(cache, 'open_splits', open_splits)
  splits = splits_lib.Splits([], [], [], '')
  identity = ['one', 'one', 'two', 'two', 'two']
  for name, changes in (('one', 'keep'), ('one', 'keep'), ('two', 'adopt')):
    experiment = experiment_of(tmp_path, name='cache', changes=changes)
    opened = clips.open_splits(experiment, tmp_path / 'run', embedded=True)
    assert opened.clips.identity == name
    if changes == 'keep':
      clips.save(experiment, tmp_path / 'run', opened)
  experiment = experiment_of(tmp_path, name='cache')
  with pytest.raises(
    SettingError, match='data.dir=.*: expected the clips that the run began wi'
  ):
    clips.open_splits(experiment, tmp_path / 'run', embedded=True)
