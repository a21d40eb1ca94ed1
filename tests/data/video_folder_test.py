"""Tests of folders of captioned videos."""

import json
import pickle

import pytest

from spacetime.data.video_folder import ClipFolder
from spacetime.media import gif
from tests.corpus import media
from tests.helpers import videos


def make_folder(folder, count=3):
  (folder / 'deep').mkdir(parents=True)
  names = ['b.mkv', 'a.mkv', 'deep/c.mkv'][:count]
  for i, name in enumerate(names):
    videos.lossless(folder / name, videos.gray_clip(12 + i))
    (folder / name).with_suffix('.txt').write_text(f'clip {name}\n')
  return names


SIZE = {'frames': 5, 'height': 8, 'width': 12, 'fps': 10}


def test_folder_with_texts(tmp_path):
  make_folder(tmp_path)
  source = pickle.loads(pickle.dumps(ClipFolder(tmp_path, **SIZE)))
  assert len(source) == 3
  captions = [source[i]['caption'] for i in range(3)]
  assert captions == ['clip a.mkv', 'clip b.mkv', 'clip deep/c.mkv']
  assert source[2]['video'].shape == (5, 8, 12, 3)
  assert videos.frame_numbers(source[2]['video']) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('kind', ['captions.jsonl', 'metadata.csv'])
def test_folder_with_a_table(tmp_path, kind):
  make_folder(tmp_path)
  rows = [('deep/c.mkv', 'a "long", one'), ('b.mkv', 'short')]
  if kind == 'metadata.csv':
    text = 'file,caption\ndeep/c.mkv,"a ""long"", one"\nb.mkv,short\n'
  else:
    text = '\n'.join(json.dumps({'file': f, 'caption': c}) for f, c in rows)
  (tmp_path / kind).write_text(text)
  source = ClipFolder(tmp_path, **SIZE)
  captions = [source[i]['caption'] for i in range(len(source))]
  assert captions == ['short', 'a "long", one']


def test_bad_folders(tmp_path):
  with pytest.raises(ValueError, match='absent: no such folder'):
    ClipFolder(tmp_path / 'absent', **SIZE)
  with pytest.raises(ValueError, match='has no videos; expected files such as'):
    ClipFolder(tmp_path, **SIZE)
  make_folder(tmp_path)
  with pytest.raises(ValueError, match='is too short: .* got 1.2'):
    ClipFolder(tmp_path, **SIZE | {'frames': 13})
  (tmp_path / 'a.txt').unlink()
  with pytest.raises(
    ValueError, match='1 of 3 videos have no caption, .*a.mkv'
  ):
    ClipFolder(tmp_path, **SIZE)
  table = tmp_path / 'metadata.csv'
  table.write_text('file,caption\nz.mkv,zero\n')
  with pytest.raises(ValueError, match='names 1 missing files, such as z.mkv'):
    ClipFolder(tmp_path, **SIZE)
  table.write_text('name,words\na.mkv,a\n')
  with pytest.raises(ValueError, match='as a table: its header is'):
    ClipFolder(tmp_path, **SIZE)
  table.unlink()
  (tmp_path / 'captions.jsonl').write_text('{"file": "a.mkv"\n')
  with pytest.raises(
    ValueError, match='captions.jsonl, line 1 cannot be read as J'
  ):
    ClipFolder(tmp_path, **SIZE)


def test_durations_are_those_of_the_pictures(tmp_path):
  size = SIZE | {'frames': 12}
  for make in (media.late, media.long_sound):
    folder = tmp_path / make.__name__
    folder.mkdir()
    make(folder / 'a.mkv')
    (folder / 'a.txt').write_text('a')
    if make is media.late:
      assert len(ClipFolder(folder, **size)) == 1
      size |= {'frames': 13}
    with pytest.raises(ValueError, match='too short: .*, got (1.2|0.5)00 sec'):
      ClipFolder(folder, **size)


def test_a_gif_at_the_rate_of_the_clips(tmp_path):
  gif.write(tmp_path / 'a.gif', videos.gray_clip(17), rate=8)
  (tmp_path / 'a.txt').write_text('a')
  source = ClipFolder(tmp_path, **SIZE | {'frames': 17, 'fps': 8})
  assert videos.frame_numbers(source[0]['video']) == list(range(17))


def test_what_reading_changes_is_counted(tmp_path, caplog):
  make_folder(tmp_path)
  media.interlaced(tmp_path / 'd.mp4')
  (tmp_path / 'd.txt').write_text('fields')
  size = SIZE | {'frames': 4}
  with caplog.at_level('WARNING'):
    ClipFolder(tmp_path, **size)
  assert '1 of 4 clips are interlaced: the two fields' in caplog.text
  assert 'lose more' not in caplog.text and 'repeated' not in caplog.text
  with caplog.at_level('WARNING'):
    ClipFolder(tmp_path, **size | {'height': 12, 'width': 6})
  assert (
    '4 of 4 clips lose more than 5 % of their area to the crop to 6x12, the '
    'most 67 % of 48x32'
  ) in caplog.text


def test_clips_of_a_lower_rate_are_counted(tmp_path, caplog):
  make_folder(tmp_path)
  with caplog.at_level('WARNING'):
    ClipFolder(tmp_path, **SIZE | {'frames': 4, 'fps': 12.5})
  assert (
    '3 of 3 clips have fewer frames a second than 12.5, so that frames are '
    'repeated; the fewest 10, '
  ) in caplog.text
