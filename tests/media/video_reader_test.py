"""Tests of reading video files."""

import gc

import av
import numpy as np
import pytest

from spacetime.media import video_file, video_reader
from tests.helpers import videos

# Encoders that every build of PyAV carries, and the tolerance of each.
FORMATS = [
  ('a.mp4', 'libx264', 'yuv444p', {'crf': '4'}, 4),
  ('a.mov', 'mpeg4', 'yuv420p', {'qscale': '1'}, 8),
  ('a.mkv', 'ffv1', 'bgr0', {}, 0),
  ('a.webm', 'libvpx-vp9', 'yuv444p', {'crf': '4', 'b': '0'}, 6),
  ('a.avi', 'ffv1', 'bgr0', {}, 0),
  ('a.gif', 'gif', 'gray', {}, 0),
]


@pytest.mark.parametrize('name, codec, pixels, options, tolerance', FORMATS)
def test_reads_every_container(
  tmp_path, name, codec, pixels, options, tolerance
):
  video_FHWC = videos.gray_clip(9)
  path = tmp_path / name
  videos.encode(path, video_FHWC, codec=codec, pixels=pixels, options=options)
  read_FHWC = video_reader.read_video(
    path, frames=9, height=32, width=48, fps=10
  )
  assert read_FHWC.dtype == np.uint8
  assert np.abs(read_FHWC.astype(int) - video_FHWC).max() <= tolerance


@pytest.mark.parametrize(
  'fps, start, want',
  [
    (10, 0.0, [0, 1, 2, 3, 4]),
    (5, 0.0, [0, 2, 4, 6, 8]),
    (20, 0.0, [0, 0, 1, 1, 2]),
    (4, 0.0, [0, 2, 5, 7, 10]),
    (10, 0.5, [5, 6, 7, 8, 9]),
    (5, 0.9, [9, 11, 13, 15, 17]),
  ],
)
@pytest.mark.parametrize('name', ['a.mkv', 'a.mp4'])
def test_resamples_in_time(tmp_path, name, fps, start, want):
  path = tmp_path / name
  if name == 'a.mkv':
    videos.lossless(path, videos.gray_clip(20))
  else:  # With B-frames, and key frames that are not where a clip starts.
    options = {'crf': '4', 'g': '7', 'bf': '2'}
    videos.encode(
      path,
      videos.gray_clip(20),
      codec='libx264',
      pixels='yuv444p',
      options=options,
    )
  read_FHWC = video_reader.read_video(
    path, frames=5, height=8, width=12, fps=fps, start=start
  )
  assert videos.frame_numbers(read_FHWC) == want


def test_variable_rate_shows_what_a_player_would(tmp_path):
  # Frame i stands from its time to the next one's; the first is time 0.
  path = videos.lossless(
    tmp_path / 'a.mkv',
    videos.gray_clip(5),
    fps=100,
    times=[70, 80, 115, 120, 160],
  )
  read_FHWC = video_reader.read_video(
    path, frames=9, height=8, width=12, fps=10
  )
  assert videos.frame_numbers(read_FHWC) == [0, 1, 1, 1, 1, 3, 3, 3, 3]


def test_resizes_the_short_side_and_cuts_the_centre(tmp_path):
  video_FHWC = np.zeros((3, 40, 90, 3), np.uint8)
  video_FHWC[:, :, 25:65] = (255, 0, 0)  # The centre square.
  video_FHWC[:, :20, 25:45] = (0, 255, 0)  # Its upper left quarter.
  path = videos.lossless(tmp_path / 'a.mkv', video_FHWC)
  read_FHWC = video_reader.read_video(
    path, frames=2, height=20, width=20, fps=10
  )
  assert read_FHWC.shape == (2, 20, 20, 3)
  np.testing.assert_array_equal(read_FHWC[0, 1:8, 1:8], [[[0, 255, 0]] * 7] * 7)
  assert (read_FHWC[0, 12:, 1:-1, 0] == 255).all()
  tall = video_reader.read_video(path, frames=2, height=40, width=10, fps=10)
  assert tall.shape == (2, 40, 10, 3)
  # Columns 40 to 50 of the file: half green, half red above, all red below.
  assert tall[0, 5, 1].tolist() == [0, 255, 0]
  assert tall[0, 5, 8].tolist() == tall[0, 30, 1].tolist() == [255, 0, 0]


SIZE = {'frames': 5, 'height': 8, 'width': 12, 'fps': 10}


def test_bad_files(tmp_path):
  with pytest.raises(ValueError, match='absent.mp4: no such file'):
    video_reader.read_video(tmp_path / 'absent.mp4', **SIZE)
  (tmp_path / 'a.mp4').write_bytes(b'this is no video' * 99)
  with pytest.raises(ValueError, match='a.mp4 cannot be read as a video'):
    video_reader.read_video(tmp_path / 'a.mp4', **SIZE)
  videos.sound_only(tmp_path / 'sound.mkv')
  with pytest.raises(ValueError, match='has no video stream'):
    video_reader.read_video(tmp_path / 'sound.mkv', **SIZE)


def test_too_short(tmp_path):
  path = videos.lossless(tmp_path / 'a.mkv', videos.gray_clip(5))
  video_reader.read_video(path, **SIZE)
  message = 'too short: expected 6 frames at 10 per second, got 5 from 0.0 s'
  with pytest.raises(ValueError, match=message):
    video_reader.read_video(path, **SIZE | {'frames': 6})
  with pytest.raises(ValueError, match='got 3 from 0.2 s'):
    video_reader.read_video(path, **SIZE, start=0.2)
  with pytest.raises(ValueError, match='got 0 from 7.0 s'):
    video_reader.read_video(path, **SIZE, start=7.0)


def test_at_most_so_many_frames(tmp_path):
  path = videos.lossless(tmp_path / 'a.mkv', videos.gray_clip(5))
  assert len(video_reader.read_video(path, most=3)) == 3
  assert len(video_reader.read_video(path, most=9)) == 5


@pytest.mark.parametrize('frames', [1, 7])
def test_all_frames_of_a_file(tmp_path, frames):
  path = videos.lossless(tmp_path / 'a.mkv', videos.gray_clip(frames))
  read_FHWC = video_reader.read_video(
    path, frames=None, height=8, width=12, fps=10
  )
  assert videos.frame_numbers(read_FHWC) == list(range(frames))
  # Held at twice the rate.
  read_FHWC = video_reader.read_video(
    path, frames=None, height=8, width=12, fps=20
  )
  assert videos.frame_numbers(read_FHWC) == [i // 2 for i in range(2 * frames)]


def test_truncated_file_is_refused(tmp_path):
  path = videos.lossless(tmp_path / 'a.mkv', videos.gray_clip(20, 64, 96))
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(ValueError, match='a.mkv (is too short|cannot be read)'):
    video_reader.read_video(path, **SIZE | {'frames': 20})


def test_own_size_and_rate_by_default(tmp_path):
  path = videos.lossless(tmp_path / 'a.mkv', videos.gray_clip(7), fps=25)
  read_FHWC = video_reader.read_video(path)
  np.testing.assert_array_equal(read_FHWC, videos.gray_clip(7))


def test_bad_sizes(tmp_path):
  with pytest.raises(ValueError, match='height=0, .*: expected all above 0'):
    video_reader.read_video(tmp_path / 'a.mkv', **SIZE | {'height': 0})
  for fps in (-1, float('nan'), float('inf')):
    with pytest.raises(ValueError, match=f'fps={fps}: expected all above 0'):
      video_reader.read_video(tmp_path / 'a.mkv', fps=fps)


@pytest.mark.slow
def test_frames_are_freed_as_they_are_read(tmp_path, monkeypatch):
  most = []

  class Frame(video_reader._Frame):
    def __init__(self, *args):
      super().__init__(*args)
      most.append(
        sum(isinstance(item, av.VideoFrame) for item in gc.get_objects())
      )

  path = videos.lossless(tmp_path / 'a.mkv', videos.gray_clip(30))
  gc.collect()
  before = sum(isinstance(item, av.VideoFrame) for item in gc.get_objects())
  monkeypatch.setattr(video_reader, '_Frame', Frame)
  gc.disable()  # cycles would hold frames until a collection
  try:
    assert len(video_reader.read_video(path, fps=20)) == 60
    assert len(video_reader.read_frames(path, [0, 29], fps=10)) == 2
  finally:
    gc.enable()
  assert len(most) == 60 and max(most) - before <= 6


def test_some_frames(tmp_path):
  path = videos.lossless(tmp_path / 'a.mkv', videos.gray_clip(9))
  images = video_reader.read_frames(path, [0, 4, 4, 99], fps=10)
  assert videos.frame_numbers(np.stack(images)) == [0, 4, 4]


def test_sizes_are_checked_before_decoding(tmp_path, monkeypatch):
  path = videos.lossless(tmp_path / 'a.mkv', videos.gray_clip(3))
  monkeypatch.setattr(video_file, 'MAX_PIXELS', 32 * 48 - 1)
  monkeypatch.setattr(video_reader, '_decode', None)
  for read in (video_reader.read_video, video_reader.probe):
    with pytest.raises(ValueError, match='48x32 pixels; expected at most 1535'):
      read(path)


def test_a_standing_frame_does_not_fill_the_memory(tmp_path, monkeypatch):
  path = videos.lossless(
    tmp_path / 'a.mkv', videos.gray_clip(2), times=[0, 10**9]
  )
  monkeypatch.setattr(video_reader, '_memory', lambda: 10**6)
  with pytest.raises(ValueError, match='does not fit in memory at 48x32 and 1'):
    video_reader.read_video(path, fps=10)


def test_files_are_not_urls(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  videos.lossless(tmp_path / 'b.mkv', videos.gray_clip(3))
  for name, message in (
    ('concat:b.mkv|b.mkv', 'no such file'),
    ('https://example.org/b.mkv', 'expected gs://BUCKET/NAME, or a path'),
  ):
    with pytest.raises(ValueError, match=message):
      video_reader.read_video(name)
  (tmp_path / 'b.mkv').rename('subfile,,start,0,end,0,,:b.mkv')
  assert len(video_reader.read_video('subfile,,start,0,end,0,,:b.mkv')) == 3


def test_damage_that_the_decoder_reports_is_refused(tmp_path):
  noise_FHWC = np.random.default_rng(0).integers(0, 255, (9, 64, 96, 3))
  path = videos.encode(
    tmp_path / 'a.mkv',
    noise_FHWC.astype(np.uint8),
    codec='libx264',
    pixels='yuv420p',
  )
  data = path.read_bytes()
  messages = []
  for part in range(2, 10):  # the decoder does not see everything
    at = part * len(data) // 10
    path.write_bytes(data[:at] + bytes(60) + data[at + 60 :])
    try:
      video_reader.read_video(path)
    except ValueError as e:
      messages.append(str(e))
  assert len(messages) >= 4
  assert all('a.mkv is damaged 0.' in message for message in messages)


def test_metadata_in_another_encoding(tmp_path):
  path = videos.encode(
    tmp_path / 'a.avi',
    videos.gray_clip(3),
    codec='mpeg4',
    pixels='yuv420p',
    metadata={'title': 'xxxx'},
  )
  path.write_bytes(path.read_bytes().replace(b'xxxx', b'\xe9t\xe9s'))
  assert len(video_reader.read_video(path)) == 3


def test_rates_beyond_those_of_cameras(tmp_path):
  fast = videos.encode(
    tmp_path / 'a.mp4',
    videos.gray_clip(4),
    codec='libx264',
    pixels='yuv420p',
    fps=1000,
  )
  assert len(video_reader.read_video(fast)) == 4
  # FFmpeg's average rate of raw DV is 60,000.
  raw = videos.encode(
    tmp_path / 'a.dv',
    videos.gray_clip(3, 480, 720),
    codec='dvvideo',
    pixels='yuv411p',
    fps=30000 / 1001,
  )
  assert video_reader.probe(raw).fps == pytest.approx(29.97, abs=0.01)
  assert len(video_reader.read_video(raw)) == 3
