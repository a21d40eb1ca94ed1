"""Watermark: exact payloads after attacks, quality, file size, false alarms.

  python -m tests.benchmarks.watermark [--unmarked=N]

Clips are pans and zooms over natural pictures, 480 x 832.
"""

import io
import sys

import av
import numpy as np
import skimage.data
from PIL import Image

from spacetime.media import codecs
from spacetime.provenance import watermark

PICTURES = ('astronaut', 'chelsea', 'coffee', 'rocket', 'retina', 'cat')
FRAMES, HEIGHT, WIDTH = 9, 480, 832


def clip(name, *, frames=FRAMES, seed=0):
  """A pan and zoom over a picture of scikit-image."""
  random = np.random.default_rng(seed)
  image = Image.fromarray(getattr(skimage.data, name)()[..., :3])
  scale = max(HEIGHT / image.height, WIDTH / image.width) * 1.3
  image = image.resize(
    (round(image.width * scale), round(image.height * scale))
  )
  drift = random.uniform(0, 1, 2)
  result = []
  for i in range(frames):
    zoom = 1 - 0.1 * i / frames
    box = np.array([WIDTH, HEIGHT]) * zoom
    room = np.array(image.size) - box
    left, top = room * (0.5 + (drift - 0.5) * i / frames)
    result.append(
      image.resize(
        (WIDTH, HEIGHT),
        Image.Resampling.BICUBIC,
        box=(left, top, left + box[0], top + box[1]),
      )
    )
  return np.stack([np.asarray(frame) for frame in result])


def encode(frames_FHWC, crf, suffix='.mp4'):
  """Decoded frames after a codec, and the bytes of the file."""
  buffer = io.BytesIO()
  with av.open(buffer, 'w', format=suffix[1:]) as container:
    stream = codecs.add_stream(
      container,
      suffix,
      rate=codecs.frame_rate(16),
      height=frames_FHWC.shape[1],
      width=frames_FHWC.shape[2],
      options={'crf': str(crf)},
    )
    for i, frame in enumerate(codecs.video_frames(frames_FHWC)):
      frame.pts = i
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  size = buffer.tell()
  buffer.seek(0)
  with av.open(buffer) as container:
    frames = [f.to_ndarray(format='rgb24') for f in container.decode(video=0)]
  return np.stack(frames), size


def resize(frames_FHWC, height, width):
  """Frames of another size."""
  return np.stack(
    [
      np.asarray(Image.fromarray(f).resize((width, height)))
      for f in frames_FHWC
    ]
  )


def crop(frames_FHWC, share):
  """The centre of frames, even sides."""
  height, width = (round(s * share / 2) * 2 for s in frames_FHWC.shape[1:3])
  top = (frames_FHWC.shape[1] - height) // 3
  left = (frames_FHWC.shape[2] - width) // 3
  return frames_FHWC[:, top : top + height, left : left + width]


def contrast(frames_FHWC):
  """Higher contrast and brightness."""
  return np.clip((frames_FHWC - 128.0) * 1.2 + 138, 0, 255).astype(np.uint8)


def gif(frames_FHWC):
  """Frames of half size in 128 colours."""
  small = resize(frames_FHWC, HEIGHT // 2, WIDTH // 2)
  return np.stack(
    [np.asarray(Image.fromarray(f).quantize(128).convert('RGB')) for f in small]
  )


ATTACKS = {
  'none': lambda x: x,
  'CRF 23': lambda x: encode(x, 23)[0],
  'CRF 28': lambda x: encode(x, 28)[0],
  'VP9 40': lambda x: encode(x, 40, '.webm')[0],
  'crop .8': lambda x: crop(x, 0.8),
  'crop .8 + CRF 28': lambda x: encode(crop(x, 0.8), 28)[0],
  'half size': lambda x: resize(x, HEIGHT // 2, WIDTH // 2),
  'half + CRF 28': lambda x: encode(resize(x, HEIGHT // 2, WIDTH // 2), 28)[0],
  'contrast': contrast,
  'GIF': gif,
  'mirror': lambda x: x[:, :, ::-1],
  'one frame': lambda x: x[:1],
}


def main():
  """Prints a table of attacks, then false alarms."""
  key = watermark.Key(b'benchmark' * 4)
  payload = 0xC0FFEE42
  pictures = PICTURES[:4] if '--quick' in sys.argv else PICTURES
  exact = {name: [] for name in ATTACKS}
  for name in pictures:
    frames = clip(name)
    marked = watermark.embed(frames, payload, key)
    sizes = [encode(x, 23)[1] for x in (frames, marked)]
    growth = 100 * (sizes[1] / sizes[0] - 1)
    quality = watermark.psnr(frames, marked)
    print(
      f'{name:10} PSNR {quality:.1f} dB, CRF 23 {growth:+.1f} %', flush=True
    )
    for attack, function in ATTACKS.items():
      reading = watermark.read(function(marked), key)
      exact[attack].append((reading.payload == payload, reading.score))
  for attack, readings in exact.items():
    scores = ' '.join(f'{score:.1f}' for _, score in readings)
    count = sum(ok for ok, _ in readings)
    print(f'{attack:18} exact {count}/{len(readings)}  score {scores}')
  count = next(
    (int(a.split('=')[1]) for a in sys.argv if a.startswith('--unmarked')), 12
  )
  scores, false = [], 0
  for i in range(count):
    frames = clip(PICTURES[i % len(PICTURES)], frames=3, seed=i)
    other = watermark.Key(b'other%d' % i)
    reading = watermark.read(frames, other)
    scores.append(reading.score)
    false += reading.payload is not None
  print(f'unmarked: {false} of {count}, greatest score {max(scores):.2f}')


if __name__ == '__main__':
  main()
