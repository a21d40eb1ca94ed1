"""Damaged files are read or refused, whatever their bytes."""

import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from PIL import Image

from spacetime.media import image_reader, video_reader
from tests.corpus import media
from tests.media.video_timing_test import SETTINGS

FILES = {
  'a.mp4': media.grays,
  'a.mkv': media.grays,
  'a.ts': media.grays,
  'a.avi': lambda path: media.grays(path, codec='mpeg4'),
  'a.mpg': lambda path: media.grays(path, codec='mpeg2video'),
  'a.gif': media.see_through,
  'a.png': media.saved(media.cutout()),
  'a.jpg': media.oriented(6),
  'a.webp': media.oriented(6),
  'a.tiff': media.oriented(6),
  'b.tiff': media.saved(media.ramp(1, np.float32)),
  'b.gif': media.palette,
  'b.png': media.palette,
  'c.png': lambda path: path.write_bytes(media.png(media.ramp(65535))),
  'a.bmp': media.saved(Image.new('RGB', (48, 32), media.RED)),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('damaged')
  for name, write in FILES.items():
    write(folder / name)
  return folder


@strategies.composite
def damages(draw):
  """A function that damages bytes."""
  kind = draw(
    strategies.sampled_from(['bytes', 'zeros', 'cut', 'swap', 'grow'])
  )
  # More of them in the header.
  start = draw(strategies.floats(0, 1)) ** draw(strategies.sampled_from([1, 4]))
  length = draw(strategies.integers(1, 300))
  noise = draw(strategies.binary(min_size=1, max_size=8))

  def damage(data: bytes) -> bytes:
    at = int(start * len(data))
    if kind == 'cut':
      return data[:at]
    if kind == 'swap':
      middle = data[at : at + length]
      return data[:at] + middle[::-1] + data[at + length :]
    if kind == 'grow':
      return data[:at] + noise + data[at:]
    filler = bytes(length) if kind == 'zeros' else noise
    return data[:at] + filler + data[at + len(filler) :]

  return damage


@hypothesis.given(
  name=strategies.sampled_from(sorted(FILES)),
  changes=strategies.lists(damages(), min_size=1, max_size=3),
)
@SETTINGS
def test_damaged_files_are_read_or_refused(folder, name, changes):
  data = (folder / name).read_bytes()
  for change in changes:
    data = change(data)
  path = folder / f'damaged_{name}'
  path.write_bytes(data)
  try:
    if pathlib.Path(name).suffix in ('.mp4', '.mkv', '.ts', '.avi', '.mpg'):
      info = video_reader.probe(path)
      assert info.seconds >= 0 and info.fps > 0
      video_FHWC = video_reader.read_video(path, frames=3, fps=info.fps)
    else:
      video_FHWC = image_reader.read_image(path)[None]
    assert video_FHWC.dtype == np.uint8 and video_FHWC.ndim == 4
  except ValueError as e:
    assert str(path) in str(e)
