"""Tests of video files: frames survive encoding; no incomplete file stays."""

import json
import os

import av
import numpy as np
import pytest
from PIL import Image

from spacetime import SettingError
from spacetime.media import video_writer
from spacetime.media.video_writer import VideoWriter


def make_clip(frames=9, height=48, width=64, seed=0):
  """A dark square that crosses a gradient of two colours."""
  y_HW, x_HW = np.mgrid[0:height, 0:width]
  clip_FHWC = np.zeros((frames, height, width, 3), np.uint8)
  clip_FHWC[..., 0] = 90 + 2 * y_HW
  clip_FHWC[..., 1] = 60 + 2 * x_HW
  clip_FHWC[..., 2] = 80 + 40 * seed
  for i in range(frames):
    clip_FHWC[i, 9 + i : 19 + i, 3 * i : 3 * i + 12] = (70, 50, 60)
  return clip_FHWC


def decode(path):
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    frames = [f.to_ndarray(format='rgb24') for f in container.decode(stream)]
    return np.stack(frames), stream.average_rate, stream.codec_context.pix_fmt


def psnr(a, b):
  error = np.mean((a.astype(np.float64) - b) ** 2)
  return 10 * np.log10(255**2 / max(error, 1e-9))


@pytest.mark.parametrize(
  'name, codec', [('a.mp4', 'yuv420p'), ('a.webm', 'yuv420p'), ('a.gif', None)]
)
def test_decodes_to_what_was_written(tmp_path, name, codec):
  clip_FHWC = make_clip()
  assert video_writer.write_video(tmp_path / name, clip_FHWC, fps=10) == (
    tmp_path / name
  )
  decoded_FHWC, rate, pixels = decode(tmp_path / name)
  assert decoded_FHWC.shape == clip_FHWC.shape
  assert rate == 10
  assert codec is None or pixels == codec
  assert psnr(decoded_FHWC, clip_FHWC) > 35
  assert os.listdir(tmp_path) == [name]


def test_colours_do_not_drift(tmp_path):
  clip_FHWC = np.empty((3, 32, 48, 3), np.uint8)
  for color in ((230, 40, 30), (20, 200, 60), (30, 50, 220), (255, 255, 255)):
    clip_FHWC[:] = color
    video_writer.write_video(tmp_path / 'a.mp4', clip_FHWC)
    decoded_FHWC, *_ = decode(tmp_path / 'a.mp4')
    assert np.abs(decoded_FHWC.astype(int) - color).max() <= 4
  with av.open(str(tmp_path / 'a.mp4')) as container:
    context = container.streams.video[0].codec_context
    assert int(context.colorspace) == int(context.color_primaries) == 1


def test_mp4_starts_with_its_index(tmp_path):
  video_writer.write_video(tmp_path / 'a.mp4', make_clip())
  data = (tmp_path / 'a.mp4').read_bytes()
  assert data.index(b'moov') < data.index(b'mdat')


def test_odd_sides_are_padded(tmp_path):
  clip_FHWC = make_clip(5, 33, 47)
  video_writer.write_video(tmp_path / 'a.mp4', clip_FHWC)
  decoded_FHWC, *_ = decode(tmp_path / 'a.mp4')
  assert decoded_FHWC.shape == (5, 34, 48, 3)
  assert psnr(decoded_FHWC[:, :33, :47], clip_FHWC) > 30
  assert psnr(decoded_FHWC[:, 33], decoded_FHWC[:, 32]) > 30
  assert psnr(decoded_FHWC[:, :, 47], decoded_FHWC[:, :, 46]) > 30


def test_fractional_rate_and_default(tmp_path):
  video_writer.write_video(tmp_path / 'a.mp4', make_clip(), fps=24000 / 1001)
  assert float(decode(tmp_path / 'a.mp4')[1]) == pytest.approx(23.976, abs=1e-3)
  video_writer.write_video(tmp_path / 'b.mp4', make_clip())
  assert decode(tmp_path / 'b.mp4')[1] == 8


def test_gif_loops_and_keeps_its_duration(tmp_path):
  video_writer.write_video(tmp_path / 'a.gif', make_clip(16), fps=8)
  with Image.open(tmp_path / 'a.gif') as image:
    assert image.n_frames == 16
    assert image.info['loop'] == 0
    total = 0
    for i in range(16):
      image.seek(i)
      total += image.info['duration']
  assert total == 2000


def test_a_still_gif_keeps_its_frames(tmp_path):
  still_FHWC = np.repeat(make_clip(1), 4, axis=0)
  video_writer.write_video(tmp_path / 'a.gif', still_FHWC, fps=5)
  with Image.open(tmp_path / 'a.gif') as image:
    total = 0
    for i in range(image.n_frames):
      image.seek(i)
      total += image.info['duration']
  assert total == 800


@pytest.mark.parametrize('name', ['frames.png', 'frames/'])
def test_png_frames(tmp_path, name):
  for frames in (5, 3):  # The second time fewer: none of the first stay.
    clip_FHWC = make_clip(frames)
    folder = video_writer.write_video(f'{tmp_path}/{name}', clip_FHWC)
    assert folder == tmp_path / 'frames'
    names = sorted(os.listdir(folder))
    assert names == [f'{i:05d}.png' for i in range(frames)]
    images = [np.asarray(Image.open(folder / n)) for n in names]
    np.testing.assert_array_equal(images, clip_FHWC)
  assert os.listdir(tmp_path) == ['frames']


def test_one_frame_as_an_image(tmp_path):
  clip_FHWC = make_clip(1)
  assert video_writer.write_video(tmp_path / 'a.png', clip_FHWC) == (
    tmp_path / 'a.png'
  )
  np.testing.assert_array_equal(Image.open(tmp_path / 'a.png'), clip_FHWC[0])


@pytest.mark.parametrize('name', ['a.mp4', 'a.webm', 'a.gif'])
def test_same_frames_same_bytes(tmp_path, name):
  seen = set()
  for _ in range(25):
    video_writer.write_video(tmp_path / name, make_clip(11))
    seen.add((tmp_path / name).read_bytes())
  assert len(seen) == 1


def test_chunks_equal_one_write(tmp_path):
  clip_FHWC = make_clip(11)
  video_writer.write_video(tmp_path / 'whole.mp4', clip_FHWC)
  with VideoWriter(tmp_path / 'parts.mp4') as parts:
    for start, stop in ((0, 1), (1, 5), (5, 11)):
      parts.append(clip_FHWC[start:stop])
  assert parts.frames == 11
  full, *_ = decode(tmp_path / 'whole.mp4')
  np.testing.assert_array_equal(full, decode(tmp_path / 'parts.mp4')[0])


def test_nothing_half_written_stays(tmp_path):
  (tmp_path / 'a.mp4').write_text('older')
  with pytest.raises(RuntimeError, match='stop'):
    with VideoWriter(tmp_path / 'a.mp4') as video:
      video.append(make_clip(120))
      assert len(os.listdir(tmp_path)) == 2
      raise RuntimeError('stop')
  assert os.listdir(tmp_path) == ['a.mp4']
  assert (tmp_path / 'a.mp4').read_text() == 'older'


def test_sidecar(tmp_path):
  settings = {'prompt': 'a red 数', 'seed': 3}
  assert video_writer.write_sidecar(tmp_path / 'a.mp4', settings) == (
    tmp_path / 'a.mp4.json'
  )
  assert json.loads((tmp_path / 'a.mp4.json').read_text('utf-8')) == settings
  assert video_writer.write_sidecar(f'{tmp_path}/b/', settings) == (
    tmp_path / 'b.json'
  )
  assert sorted(os.listdir(tmp_path)) == ['a.mp4.json', 'b.json']


def test_output_is_checked_before(tmp_path):
  video_writer.check_output(tmp_path / 'new' / 'folder' / 'a.MP4')
  assert not os.listdir(tmp_path)
  with pytest.raises(ValueError, match=r"out='.*a.avi': expected a file of "):
    video_writer.check_output(tmp_path / 'a.avi')
  with pytest.raises(ValueError, match="out='': expected a file"):
    video_writer.check_output('')
  (tmp_path / 'b.mp4').mkdir()
  with pytest.raises(ValueError, match='expected a file name, not a folder'):
    video_writer.check_output(tmp_path / 'b.mp4')
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='expected a folder, not a file'):
    video_writer.check_output(f'{tmp_path}/file/')
  for path in (tmp_path / 'file' / 'a.mp4', '/proc/none/a.mp4'):
    with pytest.raises(ValueError, match='cannot be written'):
      video_writer.check_output(path)
  (tmp_path / 'new').mkdir()
  (tmp_path / 'new' / 'letter.txt').write_text('dear')
  for call in (
    lambda: video_writer.check_output(tmp_path / 'new'),
    lambda: video_writer.write_video(tmp_path / 'new.png', make_clip()),
  ):
    with pytest.raises(ValueError, match='holds other files, such as'):
      call()


def test_bad_frames(tmp_path):
  path, clip_FHWC = tmp_path / 'a.mp4', make_clip()
  with pytest.raises(ValueError, match=r'frames are \(48, 64, 3\); expected'):
    video_writer.write_video(path, clip_FHWC[0])
  with pytest.raises(ValueError, match=r'frames are \(0, 48, 64, 3\)'):
    video_writer.write_video(path, clip_FHWC[:0])
  with pytest.raises(ValueError, match='frames are float64; expected uint8'):
    video_writer.write_video(path, clip_FHWC / 255)
  for fps in (0, float('nan')):
    with pytest.raises(ValueError, match=f'fps={fps}: expected 0.001'):
      video_writer.write_video(path, clip_FHWC, fps=fps)
  with pytest.raises(ValueError, match='fps=60: expected at most 50 for a GIF'):
    video_writer.write_video(tmp_path / 'a.GIF', clip_FHWC, fps=60)
  with pytest.raises(ValueError, match='expected a file of .mp4 or .webm'):
    VideoWriter(tmp_path / 'a.gif')
  with pytest.raises(ValueError, match=r'frames are \(64, 48\); expected \(48'):
    with VideoWriter(path) as video:
      video.append(clip_FHWC)
      video.append(clip_FHWC.swapaxes(1, 2))
  with pytest.raises(ValueError, match='no frames to write; expected 1'):
    VideoWriter(path).close()
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  'name, fps, message',
  [
    ('a.mp4', 1e-9, 'fps=1e-09: expected 0.001 to 1000'),
    ('a.gif', 60, 'fps=60: expected at most 50 for a GIF'),
  ],
)
def test_rates_are_refused_before_sampling(name, fps, message):
  with pytest.raises(SettingError, match=message):
    video_writer.check_rate(name, fps=fps)
