"""Small video files for tests, encoded on the spot."""

import fractions

import av
import numpy as np


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


def sound_only(path):
  """A file without a video stream: a tenth of a second of silence."""
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('pcm_s16le', rate=8000, layout='mono')
    frame = av.AudioFrame.from_ndarray(
      np.zeros((1, 800), np.int16), format='s16', layout='mono'
    )
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def frame_numbers(video_FHWC):
  """The frame numbers of gray_clip."""
  mean_F = video_FHWC.reshape(len(video_FHWC), -1).mean(axis=1)
  return np.round(mean_F / 8).astype(int).tolist()


# Rows of the display matrix in the header of an MP4 track, clockwise.
MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def rotated(path, upright_FHWC, degrees):
  """Writes frames on their side and a header that rotates them upright."""
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
