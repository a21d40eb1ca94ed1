"""The watermark: exact payloads, no false ones, other keys, small frames."""

import numpy as np
import pytest
import skimage.data
from PIL import Image

from spacetime.media import video_writer
from spacetime.provenance import keys, manifest, signed_files, watermark

KEY = watermark.Key(b'test' * 8)
PAYLOAD = 0xC0FFEE42


@pytest.fixture(scope='module')
def clip():
  """Two frames of a natural picture, 256 x 384."""
  image = Image.fromarray(skimage.data.astronaut())
  boxes = ((40, 60, 424, 316), (46, 64, 430, 320))
  return np.stack([np.asarray(image.crop(box)) for box in boxes])


@pytest.fixture(scope='module')
def marked(clip):
  return watermark.embed(clip, PAYLOAD, KEY)


def resize(frames_FHWC, width, height):
  return np.stack(
    [
      np.asarray(Image.fromarray(f).resize((width, height)))
      for f in frames_FHWC
    ]
  )


ATTACKS = {
  'none': lambda x: x,
  'crop': lambda x: x[:, 20:230, 35:345],
  'mirror': lambda x: x[:, :, ::-1],
  'larger': lambda x: resize(x, 500, 333),
  'contrast': lambda x: np.clip(x * 0.8 + 30, 0, 255).astype(np.uint8),
  'one frame': lambda x: x[:1],
}


@pytest.mark.parametrize('attack', ATTACKS)
def test_payload_is_exact_after(marked, attack):
  reading = watermark.read(ATTACKS[attack](marked), KEY)
  assert reading.payload == PAYLOAD, reading


def test_mark_is_invisible_and_the_same_each_time(clip, marked):
  assert watermark.psnr(clip, marked) > 40
  assert marked.dtype == np.uint8 and marked.shape == clip.shape
  np.testing.assert_array_equal(watermark.embed(clip, PAYLOAD, KEY), marked)


def test_no_mark_is_read_where_there_is_none(clip, marked):
  assert watermark.read(clip, KEY).payload is None
  assert watermark.read(marked, watermark.Key(b'other' * 8)).payload is None
  assert watermark.read(np.zeros((1, 9, 7, 3), np.uint8), KEY).payload is None


def test_payloads(clip):
  with pytest.raises(ValueError, match='expected 32 bits'):
    watermark.embed(clip, 2**32, KEY)
  assert watermark.payload_of('a', 1) == watermark.payload_of('a', 1)
  assert watermark.payload_of('a', 1) != watermark.payload_of('a1', '')
  assert 0 <= watermark.payload_of('x') < 2**32


def test_generated_picture_is_marked_and_signed(clip, tmp_path):
  key = keys.make(tmp_path / 'key')
  metadata = {
    'weights_hash': 'ab',
    'seed': 3,
    'number': 0,
    'prompt': 'secret words',
    'checkpoint': 'runs/digits',
    'mode': 'still',
  }
  frames = signed_files.mark(clip[:1], metadata, key)
  path = video_writer.write_video(tmp_path / 'still.png', frames, fps=8)
  signed_files.sign(path, metadata, key)
  report = manifest.verify(path, roots=[key.root])
  payload = signed_files.payload(metadata)
  assert (report.state, report.payload) == ('trusted', payload)
  assert report.generation['model'] == 'digits'
  assert b'secret words' not in path.read_bytes()
  data = np.asarray(Image.open(path))[None]
  assert watermark.read(data, key.watermark).payload == payload
  assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ['still.png']
