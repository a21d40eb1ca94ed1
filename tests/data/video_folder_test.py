"""Video files come in upright, at the wanted rate and size; errors are told."""

import fractions
import json
import pickle

import av
import numpy as np
import pytest
from PIL import Image

from spacetime.data import video_folder
from spacetime.data.video_folder import ClipFolder

# Encoders that every build of PyAV carries, and the tolerance of each.
FORMATS = [
  ('a.mp4', 'libx264', 'yuv444p', {'crf': '4'}, 4),
  ('a.mov', 'mpeg4', 'yuv420p', {'qscale': '1'}, 8),
  ('a.mkv', 'ffv1', 'bgr0', {}, 0),
  ('a.webm', 'libvpx-vp9', 'yuv444p', {'crf': '4', 'b': '0'}, 6),
  ('a.avi', 'ffv1', 'bgr0', {}, 0),
  ('a.gif', 'gif', 'gray', {}, 0),
]


def gray_clip(frames, height=32, width=48):
  """Frame i has the gray level 8 * i."""
  levels_F = (8 * np.arange(frames)).astype(np.uint8)
  return np.broadcast_to(
    levels_F[:, None, None, None], (frames, height, width, 3)
  )


def encode(
  path, video_FHWC, *, codec, pixels, options=None, fps=10, times=None
):
  """Writes frames at the given times, in units of 1 / fps."""
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=fps, options=options or {})
    stream.height, stream.width = video_FHWC.shape[1:3]
    stream.pix_fmt = pixels
    stream.codec_context.time_base = fractions.Fraction(1, fps)
    for i, image_HWC in enumerate(video_FHWC):
      frame = av.VideoFrame.from_ndarray(
        np.ascontiguousarray(image_HWC), format='rgb24'
      )
      frame.pts = i if times is None else times[i]
      frame.time_base = fractions.Fraction(1, fps)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def lossless(path, video_FHWC, **settings):
  return encode(path, video_FHWC, codec='ffv1', pixels='bgr0', **settings)


def sound(path):
  """A file without a picture: a tenth of a second of silence."""
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('pcm_s16le', rate=8000, layout='mono')
    frame = av.AudioFrame.from_ndarray(
      np.zeros((1, 800), np.int16), format='s16', layout='mono'
    )
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def levels(video_FHWC):
  """The frame numbers of gray_clip."""
  mean_F = video_FHWC.reshape(len(video_FHWC), -1).mean(axis=1)
  return np.round(mean_F / 8).astype(int).tolist()


@pytest.mark.parametrize('name, codec, pixels, options, tolerance', FORMATS)
def test_reads_every_container(
  tmp_path, name, codec, pixels, options, tolerance
):
  video_FHWC = gray_clip(9)
  path = tmp_path / name
  encode(path, video_FHWC, codec=codec, pixels=pixels, options=options)
  read_FHWC = video_folder.read_video(
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
    lossless(path, gray_clip(20))
  else:  # With B-frames, and key frames that are not where a clip starts.
    options = {'crf': '4', 'g': '7', 'bf': '2'}
    encode(
      path, gray_clip(20), codec='libx264', pixels='yuv444p', options=options
    )
  read_FHWC = video_folder.read_video(
    path, frames=5, height=8, width=12, fps=fps, start=start
  )
  assert levels(read_FHWC) == want


def test_variable_rate_shows_what_a_player_would(tmp_path):
  # Frame i stands from its time to the next one's; the first is time 0.
  path = lossless(
    tmp_path / 'a.mkv', gray_clip(5), fps=100, times=[70, 80, 115, 120, 160]
  )
  read_FHWC = video_folder.read_video(
    path, frames=9, height=8, width=12, fps=10
  )
  assert levels(read_FHWC) == [0, 1, 1, 1, 1, 3, 3, 3, 3]


def test_resizes_the_short_side_and_cuts_the_centre(tmp_path):
  video_FHWC = np.zeros((3, 40, 90, 3), np.uint8)
  video_FHWC[:, :, 25:65] = (255, 0, 0)  # The centre square.
  video_FHWC[:, :20, 25:45] = (0, 255, 0)  # Its upper left quarter.
  path = lossless(tmp_path / 'a.mkv', video_FHWC)
  read_FHWC = video_folder.read_video(
    path, frames=2, height=20, width=20, fps=10
  )
  assert read_FHWC.shape == (2, 20, 20, 3)
  np.testing.assert_array_equal(read_FHWC[0, 1:8, 1:8], [[[0, 255, 0]] * 7] * 7)
  assert (read_FHWC[0, 12:, 1:-1, 0] == 255).all()
  tall = video_folder.read_video(path, frames=2, height=40, width=10, fps=10)
  assert tall.shape == (2, 40, 10, 3)
  # Columns 40 to 50 of the file: half green, half red above, all red below.
  assert tall[0, 5, 1].tolist() == [0, 255, 0]
  assert tall[0, 5, 8].tolist() == tall[0, 30, 1].tolist() == [255, 0, 0]


# Rows of the display matrix in the header of an MP4 track, clockwise.
MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def lying(path, upright_FHWC, degrees):
  """As a telephone writes it: the pictures lie, the header turns them."""
  encode(
    path,
    np.rot90(upright_FHWC, degrees // 90, axes=(1, 2)),  # against the clock
    codec='libx264',
    pixels='yuv444p',
    options={'crf': '4'},
  )
  data = bytearray(path.read_bytes())
  at = data.index(b'tkhd') + 4 + 40
  a, b, c, d = MATRICES[degrees]
  for offset, value in ((0, a), (4, b), (12, c), (16, d)):
    data[at + offset : at + offset + 4] = (value << 16).to_bytes(
      4, 'big', signed=True
    )
  path.write_bytes(data)
  return path


@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_rotation_is_honoured(tmp_path, degrees):
  upright_HWC = np.zeros((32, 48, 3), np.uint8)
  upright_HWC[:16, :24] = (255, 0, 0)
  upright_HWC[16:, :24] = (0, 255, 0)
  upright_HWC[:16, 24:] = (0, 0, 255)
  path = lying(tmp_path / 'a.mp4', np.stack([upright_HWC] * 3), degrees)
  read_FHWC = video_folder.read_video(
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
  read_HWC = video_folder.read_image(path, height=20, width=20)
  np.testing.assert_array_equal(read_HWC, image_HWC[:, 5:25])
  exif = Image.Exif()
  exif[0x0112] = 6  # Turn clockwise to show.
  Image.fromarray(image_HWC).save(tmp_path / 'b.png', exif=exif)
  turned_HWC = video_folder.read_image(tmp_path / 'b.png', height=30, width=20)
  np.testing.assert_array_equal(turned_HWC, np.rot90(image_HWC, -1))
  Image.fromarray(image_HWC).convert('RGBA').save(tmp_path / 'c.png')
  assert video_folder.read_image(
    tmp_path / 'c.png', height=8, width=9
  ).shape == (
    8,
    9,
    3,
  )


def make_folder(folder, count=3):
  (folder / 'deep').mkdir(parents=True)
  names = ['b.mkv', 'a.mkv', 'deep/c.mkv'][:count]
  for i, name in enumerate(names):
    lossless(folder / name, gray_clip(12 + i))
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
  assert levels(source[2]['video']) == [0, 1, 2, 3, 4]


def test_all_windows_of_each_file(tmp_path):
  make_folder(tmp_path)
  source = ClipFolder(tmp_path, **SIZE | {'frames': 4}, windows='all')
  assert len(source) == 3 * 3
  assert [levels(source[i]['video']) for i in range(3)] == [
    [0, 1, 2, 3],
    [4, 5, 6, 7],
    [8, 9, 10, 11],
  ]


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


def test_bad_files(tmp_path):
  with pytest.raises(ValueError, match='is no file; change --image, --video'):
    video_folder.read_video(tmp_path / 'absent.mp4', **SIZE)
  with pytest.raises(ValueError, match='is no file'):
    video_folder.read_image(tmp_path / 'absent.png', height=8, width=12)
  (tmp_path / 'a.mp4').write_bytes(b'this is no video' * 99)
  with pytest.raises(ValueError, match='cannot be read as a video .*--video'):
    video_folder.read_video(tmp_path / 'a.mp4', **SIZE)
  with pytest.raises(ValueError, match='cannot be read as an image .*--image'):
    video_folder.read_image(tmp_path / 'a.mp4', height=8, width=12)
  sound(tmp_path / 'sound.mkv')
  with pytest.raises(ValueError, match='has no video stream; change --video'):
    video_folder.read_video(tmp_path / 'sound.mkv', **SIZE)


def test_too_short(tmp_path):
  path = lossless(tmp_path / 'a.mkv', gray_clip(5))
  video_folder.read_video(path, **SIZE)
  message = 'too short: expected 6 frames at 10 per second, got 5 from 0.0 s'
  with pytest.raises(ValueError, match=message):
    video_folder.read_video(path, **SIZE | {'frames': 6})
  with pytest.raises(ValueError, match='got 3 from 0.2 s; remove it, or chan'):
    video_folder.read_video(path, **SIZE, start=0.2)
  with pytest.raises(ValueError, match='got 0 from 7.0 s'):
    video_folder.read_video(path, **SIZE, start=7.0)
  (tmp_path / 'a.txt').write_text('a')
  with pytest.raises(ValueError, match='a.mkv is too short: .* got 0.5'):
    ClipFolder(tmp_path, **SIZE | {'frames': 6})


@pytest.mark.parametrize('frames', [1, 7])
def test_all_frames_of_a_file(tmp_path, frames):
  path = lossless(tmp_path / 'a.mkv', gray_clip(frames))
  read_FHWC = video_folder.read_video(
    path, frames=None, height=8, width=12, fps=10
  )
  assert levels(read_FHWC) == list(range(frames))
  # Held at twice the rate.
  read_FHWC = video_folder.read_video(
    path, frames=None, height=8, width=12, fps=20
  )
  assert levels(read_FHWC) == [i // 2 for i in range(2 * frames)]


def test_truncated_file_is_told(tmp_path):
  path = lossless(tmp_path / 'a.mkv', gray_clip(20, 64, 96))
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(ValueError, match='a.mkv (is too short|cannot be read)'):
    video_folder.read_video(path, **SIZE | {'frames': 20})


def test_bad_folders(tmp_path):
  with pytest.raises(ValueError, match='is no folder; change data.dir'):
    ClipFolder(tmp_path / 'absent', **SIZE)
  with pytest.raises(ValueError, match='has no videos; expected files such as'):
    ClipFolder(tmp_path, **SIZE)
  make_folder(tmp_path)
  with pytest.raises(ValueError, match="windows='some': expected 'first' or"):
    ClipFolder(tmp_path, **SIZE, windows='some')
  with pytest.raises(ValueError, match='height=0, .*: expected all above 0'):
    ClipFolder(tmp_path, **SIZE | {'height': 0})
  (tmp_path / 'a.txt').unlink()
  with pytest.raises(
    ValueError, match='1 of 3 videos have no caption, .*a.mkv'
  ):
    ClipFolder(tmp_path, **SIZE)
  table = tmp_path / 'metadata.csv'
  table.write_text('file,caption\nz.mkv,zero\n')
  with pytest.raises(ValueError, match='names 1 files that are not there, suc'):
    ClipFolder(tmp_path, **SIZE)
  table.write_text('name,words\na.mkv,a\n')
  with pytest.raises(ValueError, match=r"as a table \(KeyError: 'file'\)"):
    ClipFolder(tmp_path, **SIZE)
  (tmp_path / 'captions.jsonl').write_text('{"file": "a.mkv"\n')
  with pytest.raises(
    ValueError, match='captions.jsonl cannot be read as a tab'
  ):
    ClipFolder(tmp_path, **SIZE)
