"""Tests of reading video and image files."""

import numpy as np
import pytest
from PIL import Image

from spacetime.media import video_reader
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


@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_rotation_is_honoured(tmp_path, degrees):
  upright_HWC = np.zeros((32, 48, 3), np.uint8)
  upright_HWC[:16, :24] = (255, 0, 0)
  upright_HWC[16:, :24] = (0, 255, 0)
  upright_HWC[:16, 24:] = (0, 0, 255)
  upright_FHWC = np.stack([upright_HWC] * 3)
  path = videos.rotated(tmp_path / 'a.mp4', upright_FHWC, degrees)
  read_FHWC = video_reader.read_video(
    path, frames=2, height=32, width=48, fps=10
  )
  for y, x in ((4, 4), (28, 4), (4, 44), (28, 44)):
    error = read_FHWC[0, y, x].astype(int) - upright_HWC[y, x]
    assert np.abs(error).max() <= 12


def test_images(tmp_path):
  image_HWC = np.zeros((20, 30, 3), np.uint8)
  image_HWC[:, 5:25] = (10, 200, 30)
  path = tmp_path / 'a.png'
  Image.fromarray(image_HWC).save(path)
  read_HWC = video_reader.read_image(path, height=20, width=20)
  np.testing.assert_array_equal(read_HWC, image_HWC[:, 5:25])
  exif = Image.Exif()
  exif[0x0112] = 6  # Turn clockwise to show.
  Image.fromarray(image_HWC).save(tmp_path / 'b.png', exif=exif)
  turned_HWC = video_reader.read_image(tmp_path / 'b.png', height=30, width=20)
  np.testing.assert_array_equal(turned_HWC, np.rot90(image_HWC, -1))
  Image.fromarray(image_HWC).convert('RGBA').save(tmp_path / 'c.png')
  assert video_reader.read_image(
    tmp_path / 'c.png', height=8, width=9
  ).shape == (
    8,
    9,
    3,
  )


SIZE = {'frames': 5, 'height': 8, 'width': 12, 'fps': 10}


def test_bad_files(tmp_path):
  with pytest.raises(ValueError, match='absent.mp4: no such file'):
    video_reader.read_video(tmp_path / 'absent.mp4', **SIZE)
  with pytest.raises(ValueError, match='absent.png: no such file'):
    video_reader.read_image(tmp_path / 'absent.png', height=8, width=12)
  (tmp_path / 'a.mp4').write_bytes(b'this is no video' * 99)
  with pytest.raises(ValueError, match='a.mp4 cannot be read as a video'):
    video_reader.read_video(tmp_path / 'a.mp4', **SIZE)
  with pytest.raises(ValueError, match='a.mp4 cannot be read as an image'):
    video_reader.read_image(tmp_path / 'a.mp4', height=8, width=12)
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
