"""Tests of reading images; their kinds are in tests/corpus/media.py."""

import numpy as np
import pytest
from PIL import Image

from spacetime.media import image_reader


def test_resizes_the_short_side_and_cuts_the_centre(tmp_path):
  image_HWC = np.zeros((20, 30, 3), np.uint8)
  image_HWC[:, 5:25] = (10, 200, 30)
  path = tmp_path / 'a.png'
  Image.fromarray(image_HWC).save(path)
  np.testing.assert_array_equal(image_reader.read_image(path), image_HWC)
  read_HWC = image_reader.read_image(path, height=20, width=20)
  np.testing.assert_array_equal(read_HWC, image_HWC[:, 5:25])
  assert image_reader.read_image(path, height=8, width=9).shape == (8, 9, 3)


def test_refusals(tmp_path):
  with pytest.raises(ValueError, match='absent.png: no such file'):
    image_reader.read_image(tmp_path / 'absent.png')
  with pytest.raises(ValueError, match='height=0, .*: expected all above 0'):
    image_reader.read_image(tmp_path / 'absent.png', height=0, width=2)


@pytest.mark.parametrize('ground', [0, 255])
def test_transparent_parts_have_the_ground(ground):
  image = Image.new('RGBA', (4, 2), (9, 9, 9, 0))
  pixels = np.asarray(image_reader.to_rgb(image, ground=ground))
  assert (pixels == ground).all()
