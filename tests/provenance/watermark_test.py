"""The watermark: exact payloads, no false ones, other keys, small frames."""

import io

import av
import numpy as np
import pytest
import skimage.data
from PIL import Image

from spacetime.media import codecs, video_writer
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


def foliage():
  """Two frames of a texture, 256 x 384, whose blue follows its luma."""
  random = np.random.default_rng(0)
  shape = 272, 400
  frequency = np.hypot(
    np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None]
  )
  spectrum = np.fft.fft2(random.normal(size=shape)) / np.maximum(
    frequency, 1 / shape[1]
  )
  texture = np.fft.ifft2(spectrum).real
  texture = texture[..., None] / texture.std() * (30, 45, -20) + (90, 120, 60)
  pixels_HWC = np.clip(texture, 0, 255).astype(np.uint8)
  return np.stack([pixels_HWC[i : i + 256, i : i + 384] for i in (0, 4)])


def test_payload_is_exact_in_the_palette_of_a_gif():
  """A palette brings the picture's own interference back, which the embedding
  had cancelled."""
  frames = foliage()

  def gif(frames_FHWC):
    return np.stack(
      [
        np.asarray(Image.fromarray(frame).quantize(128).convert('RGB'))
        for frame in frames_FHWC
      ]
    )

  marked = gif(watermark.embed(frames, PAYLOAD, KEY))
  assert watermark.read(marked, KEY).payload == PAYLOAD
  assert watermark.read(gif(frames), KEY).payload is None


def test_untouched_frames_are_read_without_a_search(clip, marked):
  assert watermark.read(marked, KEY, search=False).payload == PAYLOAD
  cropped = ATTACKS['crop'](marked)
  assert watermark.read(cropped, KEY, search=False).payload is None
  assert watermark.read(clip, KEY, search=False).payload is None


def test_mark_costs_few_bytes():
  """Chips fill macroblocks, and flat pictures are marked weakly."""
  image = np.full((480, 832, 3), (8, 56, 62), np.uint8)
  image[160:320, 300:500] = (200, 40, 40)
  frames = np.stack([image] * 3)
  marked = watermark.embed(frames, PAYLOAD, KEY)
  sizes = []
  for x in (frames, marked):
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='mp4') as container:
      stream = codecs.add_stream(
        container,
        '.mp4',
        rate=codecs.frame_rate(8),
        height=480,
        width=832,
        options={'crf': '23'},
      )
      for i, frame in enumerate(codecs.video_frames(x)):
        frame.pts = i
        container.mux(stream.encode(frame))
      container.mux(stream.encode())
    sizes.append(buffer.tell())
  # 1,100 bytes; 2,700 with chips of 15 pixels and the target of busy pictures.
  assert 300 < sizes[1] - sizes[0] < 1500
  buffer.seek(0)
  with av.open(buffer) as container:
    decoded = [f.to_ndarray(format='rgb24') for f in container.decode(video=0)]
  assert watermark.read(np.stack(decoded), KEY).payload == PAYLOAD


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
  signed_files.sign_missing(path, metadata, key)
  signed = path.read_bytes()
  signed_files.sign_missing(path, metadata, key)  # kept by a second command
  assert path.read_bytes() == signed
  report = manifest.verify(path, roots=[key.root])
  payload = signed_files.payload(metadata)
  assert (report.state, report.payload) == ('trusted', payload)
  assert report.generation['model'] == 'digits'
  assert b'secret words' not in path.read_bytes()
  data = np.asarray(Image.open(path))[None]
  assert watermark.read(data, key.watermark).payload == payload
  assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ['still.png']
