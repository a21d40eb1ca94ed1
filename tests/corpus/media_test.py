"""Odd videos and images: every case of the corpus."""

import numpy as np
import pytest

from spacetime.media import image_reader, video_reader
from tests.corpus import media
from tests.helpers import videos


def check(case, image_HWC):
  if case.size is not None:
    assert image_HWC.shape == (*case.size, 3)
  for position, color in case.colors.items():
    error = np.abs(image_HWC[position].astype(int) - color).max()
    assert error <= case.tolerance, (position, image_HWC[position], color)


def ids(cases):
  return [f'{i}_{case.name}' for i, case in enumerate(cases)]


@pytest.mark.parametrize('case', media.VIDEOS, ids=ids(media.VIDEOS))
def test_videos_are_right_or_refused(tmp_path, case):
  path = tmp_path / case.name
  case.write(path)
  if case.refusal is not None:
    with pytest.raises(ValueError) as e:
      video_reader.read_video(path, fps=media.RATE)
    assert case.refusal in str(e.value)
    assert str(path) in str(e.value)
    return
  info = video_reader.probe(path)
  video_FHWC = video_reader.read_video(path, fps=media.RATE)
  assert info.remarks == case.remarks
  assert video_reader.video_size(path) == (info.height, info.width)
  assert video_FHWC.shape[1:3] == (info.height, info.width)
  if case.seconds is not None:
    assert info.seconds == pytest.approx(case.seconds, abs=2e-3)
    assert len(video_FHWC) == round(case.seconds * media.RATE)
  if case.numbers is not None:
    assert videos.frame_numbers(video_FHWC) == list(case.numbers)
  check(case, video_FHWC[0])


@pytest.mark.parametrize('case', media.IMAGES, ids=ids(media.IMAGES))
def test_images_are_right_or_refused(tmp_path, case):
  path = tmp_path / case.name
  case.write(path)
  if case.refusal is not None:
    with pytest.raises(ValueError) as e:
      image_reader.read_image(path)
    assert case.refusal in str(e.value)
    assert str(path) in str(e.value)
    return
  check(case, image_reader.read_image(path))


@pytest.mark.parametrize('orientation', media.ORIENTATIONS)
@pytest.mark.parametrize('size', [{}, {'height': 32, 'width': 48}])
def test_a_disc_is_round(tmp_path, orientation, size):
  # Pixels of 2:1 lie on their side in a turned file, as pixels of 1:2.
  sideways = orientation >= 5
  path = media.shown(
    tmp_path / 'a.mp4',
    media.disc(2),
    orientation=orientation,
    pixel_aspect=media.fractions.Fraction(*((1, 2) if sideways else (2, 1))),
  )
  inside_HW = video_reader.read_video(path, **size)[0, :, :, 0] > 128
  rows, columns = inside_HW.any(1).sum(), inside_HW.any(0).sum()
  want = 20 if size else 20 if sideways else 40
  assert abs(rows - want) <= 1 and abs(columns - want) <= 1
