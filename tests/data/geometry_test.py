"""The three grids of a clip, and sizes that they refuse."""

import pytest

from spacetime.data.geometry import Geometry, latent_frames


def test_wan_sizes():
  grid = Geometry(81, 480, 832, (4, 8, 8), (1, 2, 2))
  assert grid.latent == (21, 60, 104)
  assert grid.grid == (21, 30, 52)
  assert grid.tokens == 32760


def test_an_image_is_a_video_of_one_frame():
  assert Geometry(1, 64, 96, (4, 8, 8), (1, 2, 2)).grid == (1, 4, 6)


@pytest.mark.parametrize(
  'frames, height, width, text',
  [
    (16, 64, 64, 'frames=16: expected 4k\\+1, such as 13 or 17'),
    (0, 64, 64, 'frames=0: expected 4k\\+1, such as 1 or 5'),
    (17, 60, 64, 'height=60: expected a multiple of 16 .* such as 48 or 64'),
    (17, 64, 8, 'width=8: expected a multiple of 16 .* such as 16 or 32'),
  ],
)
def test_refuses(frames, height, width, text):
  with pytest.raises(ValueError, match=text):
    Geometry(frames, height, width, (4, 8, 8), (1, 2, 2))


def test_refuses_patches_of_time():
  with pytest.raises(ValueError, match='expected 1 latent frame per token'):
    Geometry(17, 64, 64, (4, 8, 8), (2, 2, 2))
  with pytest.raises(ValueError, match='expected three positive integers'):
    Geometry(17, 64, 64, (4, 8), (1, 2, 2))


def test_latent_frames():
  assert [latent_frames(n, stride=4) for n in (1, 5, 17)] == [1, 2, 5]
  with pytest.raises(ValueError, match='frames=4: expected 4k\\+1'):
    latent_frames(4, stride=4)
