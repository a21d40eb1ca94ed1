"""A contact sheet shows all frames of every clip below its caption."""

import numpy as np
import pytest
from PIL import Image

from spacetime.media import contact_sheet
from tests.media.video_writer_test import make_clip


def test_every_clip_is_below_its_caption(tmp_path):
  clips = [make_clip(7, 30, 40), make_clip(4, 24, 32, seed=2)]
  long = 'a dark square moves to the lower right over two colours ' * 4
  sheet_HWC = contact_sheet.draw(clips, [long, 'short'], columns=4, scale=3)
  assert sheet_HWC.dtype == np.uint8
  H, W, _ = sheet_HWC.shape
  assert W == 4 * (40 * 3 + 4)
  one_line = contact_sheet.draw(clips, ['x', 'x'], columns=4, scale=3)
  assert H > one_line.shape[0] + 20
  # The last frame of the first clip is the rightmost picture, enlarged.
  want_HWC = clips[0][-1].repeat(3, 0).repeat(3, 1)
  tops = [
    y
    for y in range(H - 90)
    if (sheet_HWC[y : y + 90, W - 122 : W - 2] == want_HWC).all()
  ]
  assert len(tops) == 1
  # Black letters above it, and none cut off at the right edge.
  text_HW = sheet_HWC[: tops[0]].max(axis=-1)
  assert (text_HW < 60).sum() > 500
  assert (text_HW[:, -2:] == 255).all()
  contact_sheet.write(tmp_path / 's.png', clips, [long, 'short'], columns=4)
  with Image.open(tmp_path / 's.png') as image:
    assert image.width == 4 * (40 * 2 + 4)


def test_a_long_word_is_broken():
  sheet_HWC = contact_sheet.draw([make_clip(1, 20, 30)], ['m' * 90])
  bottom_HW = sheet_HWC[:-50].max(axis=-1)
  assert (bottom_HW[:, -2:] == 255).all()
  assert (bottom_HW < 60).sum() > 500


def test_refuses_clips_without_captions():
  clip_FHWC = make_clip()
  with pytest.raises(ValueError, match='1 clips and 2 captions; expected as m'):
    contact_sheet.draw([clip_FHWC], ['a', 'b'])
  with pytest.raises(ValueError, match='0 clips and 0 captions; .* at least o'):
    contact_sheet.draw([], [])
  with pytest.raises(ValueError, match='frames are float64; expected uint8'):
    contact_sheet.draw([clip_FHWC / 255], ['a'])
