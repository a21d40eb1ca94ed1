"""Tests of videos, images and masks as inputs of a request."""

import numpy as np
import pytest
from PIL import Image

import spacetime
from spacetime import SettingError
from spacetime.data import geometry
from spacetime.media import gif
from spacetime.pipeline import inputs
from spacetime.pipeline.video import Video
from tests.corpus import media
from tests.helpers import videos

GRID = geometry.Geometry(9, 32, 48, (4, 1, 1), (1, 16, 16))
SQUARE = geometry.Geometry(9, 64, 64, (4, 1, 1), (1, 16, 16))


def test_cropping_is_reported(tmp_path, caplog):
  Image.new('RGB', (128, 64)).save(tmp_path / 'a.png')
  tall = geometry.Geometry(1, 128, 64, (4, 1, 1), (1, 16, 16))
  with caplog.at_level('WARNING'):
    inputs.read_image(tmp_path / 'a.png', 'image', tall)
  assert (
    'a.png is cropped from 128x64 to the proportions of 64x128: 75 % of its '
    'area is cut off at the sides'
  ) in caplog.text
  caplog.clear()
  with caplog.at_level('WARNING'):
    inputs.read_image(Image.new('RGB', (64, 65)), 'image', SQUARE)
  assert '2 % of its area is cut off at the top and bottom' in caplog.text
  caplog.clear()
  with caplog.at_level('WARNING'):
    inputs.read_image(np.zeros((16, 16, 3), np.uint8), 'image', SQUARE)
    videos.lossless(tmp_path / 'a.mkv', videos.gray_clip(3))
    inputs.read_video(tmp_path / 'a.mkv', 'video', GRID, fps=10)
  assert not caplog.text


def test_images_at_their_own_size_of_every_kind(tmp_path):
  """A path, a PIL image and an array; references, with commas between them."""
  image = np.zeros((6, 10, 3), np.uint8)
  image[:, :5] = 200, 100, 50
  Image.fromarray(image).save(tmp_path / 'a.png')
  path = tmp_path / 'a.png'
  for source in (path, str(path), Image.open(path), image):
    np.testing.assert_array_equal(inputs.read_original(source, 'image'), image)
  one, other = inputs.read_references(f'{path}, {path}', SQUARE)
  assert one.shape == (64, 64, 3)
  np.testing.assert_array_equal(one[32, [0, -1]], [[200, 100, 50], [0, 0, 0]])
  np.testing.assert_array_equal(one, other)
  Image.fromarray(image).save(tmp_path / 'a,b.png')
  assert len(inputs.read_references(str(tmp_path / 'a,b.png'), SQUARE)) == 1
  for empty in ('', ',', f'{path},'):
    with pytest.raises(SettingError, match='^reference_images=.*with commas'):
      inputs.read_references(empty, SQUARE)
  (tmp_path / 'b.png').write_bytes(b'no image')
  with pytest.raises(SettingError, match='^image=.*b.png.*an image file; '):
    inputs.read_original(tmp_path / 'b.png', 'image')


@pytest.mark.parametrize('end', ['gif', 'webp', 'png', 'tiff'])
def test_the_first_of_several_pictures_is_taken(tmp_path, caplog, end):
  first, *rest = [
    Image.fromarray(half_HW(0, 255)).convert('RGB'),
    *(Image.new('RGB', (48, 32), (level, 0, 0)) for level in (90, 255)),
  ]
  path = tmp_path / f'a.{end}'
  first.save(path, save_all=True, append_images=rest)
  expected = half_HW(False, True, bool)
  read_HWC = inputs.read_image(path, 'image', GRID)
  assert ((read_HWC[..., 0] > 127) == expected).all()
  assert 'image=' in caplog.text and 'has 3 pictures: the first' in caplog.text
  caplog.clear()
  new_HW = inputs.read_mask(path, GRID, size=(32, 48))
  assert (new_HW == expected).all()
  assert 'mask=' in caplog.text and 'has 3 pictures: the first' in caplog.text


def test_no_reference_images():
  for empty in ([], ()):
    with pytest.raises(
      SettingError, match='reference_images=.*one image or mo'
    ):
      inputs.read_references(empty, GRID)


def test_a_folder_is_no_file(tmp_path):
  with pytest.raises(SettingError, match='image=.*: a folder: expected a file'):
    inputs.read_original(tmp_path, 'image')
  with pytest.raises(SettingError, match='video=.*: a folder: expected a file'):
    inputs.read_video(tmp_path, 'video', GRID, fps=8)


def test_paths_with_semicolons_are_named(tmp_path):
  path = tmp_path / 'a;b.png'
  with pytest.raises(
    SettingError, match='expected an image file; .*/a;b.png: '
  ):
    inputs.read_original(path, 'image')
  with pytest.raises(SettingError, match='; .*/a;b.png: no such file$'):
    inputs.read_video(path, 'video', GRID, fps=8)


def test_no_size_is_advised_that_is_set_already():
  near = np.zeros((9, 34, 48, 3), np.uint8)
  with pytest.raises(SettingError, match='not 48x34 pixels; crop it$'):
    inputs.read_video(near, 'video', GRID, fps=8)


def test_what_reading_changes_is_reported(tmp_path, caplog):
  media.interlaced(tmp_path / 'a.mp4')
  with caplog.at_level('WARNING'):
    inputs.read_video(tmp_path / 'a.mp4', 'video', GRID, fps=10)
  assert 'video=' in caplog.text and 'a.mp4 is interlaced' in caplog.text


def test_a_gif_at_the_rate_of_the_model(tmp_path):
  # Times of a GIF are hundredths of a second.
  gif.write(tmp_path / 'a.gif', videos.gray_clip(17), rate=8)
  clip = spacetime.read_video(tmp_path / 'a.gif')
  assert clip.fps == pytest.approx(8, abs=0.05)
  assert videos.frame_numbers(clip.frames) == list(range(17))
  video_FHWC = inputs.read_video(tmp_path / 'a.gif', 'video', GRID, fps=8)
  assert videos.frame_numbers(video_FHWC) == list(range(17))


def test_frames_in_memory_are_resampled_like_files():
  clip = Video(videos.gray_clip(9), fps=29.97)
  video_FHWC = inputs.read_video(clip, 'video', GRID, fps=30)
  assert videos.frame_numbers(video_FHWC) == list(range(9))
  video_FHWC = inputs.read_video(clip, 'video', GRID, fps=24)
  assert videos.frame_numbers(video_FHWC) == [0, 1, 2, 4, 5, 6, 7]


def half_HW(dark, light, dtype=np.uint8):
  """A mask whose right half is new."""
  mask_HW = np.full((32, 48), dark, dtype)
  mask_HW[:, 24:] = light
  return mask_HW


def transparent():
  """White of which the left half is transparent."""
  mask_HWC = np.full((32, 48, 4), 255, np.uint8)
  mask_HWC[:, :24, 3] = 0
  return mask_HWC


@pytest.mark.parametrize(
  'source',
  [
    half_HW(0, 255),
    half_HW(False, True, bool),
    transparent(),
    Image.fromarray(transparent()),
    Image.fromarray(half_HW(200, 65535, np.uint16)),
    Image.fromarray(half_HW(0.01, 1.0, np.float32)),
    Image.fromarray(half_HW(0, 255)).convert('1'),
  ],
)
def test_masks_of_any_depth(tmp_path, source):
  sources = [source]
  if isinstance(source, Image.Image):
    suffix = '.tiff' if source.mode == 'F' else '.png'
    source.save(tmp_path / f'a{suffix}')
    sources.append(tmp_path / f'a{suffix}')
  for mask in sources:
    new_HW = inputs.read_mask(mask, GRID, size=(32, 48))
    assert (new_HW == half_HW(False, True, bool)).all()


def test_masks_are_upright(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 2  # mirrored
  image = Image.fromarray(half_HW(255, 0))
  image.save(tmp_path / 'a.png', exif=exif)
  new_HW = inputs.read_mask(tmp_path / 'a.png', GRID, size=(32, 48))
  assert (new_HW == half_HW(False, True, bool)).all()


def test_values_without_a_known_range():
  wide = Image.fromarray(half_HW(0, 7.0, np.float32))
  with pytest.raises(SettingError, match='mask=.*floats are from 0.0 to 7.0'):
    inputs.read_mask(wide, GRID, size=(32, 48))
  with pytest.raises(SettingError, match='image=.*an image of 8 or 16 bits'):
    inputs.read_image(wide, 'image', GRID)
  with pytest.raises(SettingError, match=r'mask=.*bool or uint8 \(H, W\)'):
    inputs.read_mask(np.zeros((32, 48, 7), np.uint8), GRID, size=(32, 48))
