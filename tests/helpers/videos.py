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
  path,
  video_FHWC,
  *,
  codec,
  pixels,
  options=None,
  fps=10,
  times=None,
  base=None,
  matrix=None,
  pixel_aspect=None,
  tags=None,
  reformat=None,
  sound=None,
  container=None,
  metadata=None,
):
  """Writes frames.

  Args:
    path: the file.
    video_FHWC: uint8.
    codec: the encoder.
    pixels: its pixel format.
    options: its options.
    fps: frames per second.
    times: timestamps of the frames in units of `base`.
    base: unit of the timestamps in seconds; the default is 1 / fps.
    matrix: a, b, c, d of the display matrix; MP4 only.
    pixel_aspect: width of a pixel by its height, a Fraction.
    tags: attributes of the stream, such as colorspace.
    reformat: settings of the conversion from RGB.
    sound: seconds of silence beside the video.
    container: options of the container.
    metadata: texts of the container, such as a title.
  """
  rate = fractions.Fraction(fps).limit_denominator(1001)
  base = base or 1 / rate
  with av.open(str(path), 'w', options=container or {}) as file:
    file.metadata.update(metadata or {})
    stream = file.add_stream(codec, rate=rate, options=options or {})
    stream.height, stream.width = video_FHWC.shape[1:3]
    stream.pix_fmt = pixels
    context = stream.codec_context
    context.time_base = base
    if pixel_aspect is not None:
      context.sample_aspect_ratio = pixel_aspect
    for name, value in (tags or {}).items():
      setattr(context, name, value)
    audio = None
    if sound is not None:
      audio = file.add_stream('aac', rate=8000, layout='mono')
    for i, image_HWC in enumerate(video_FHWC):
      frame = av.VideoFrame.from_ndarray(
        np.ascontiguousarray(image_HWC), format='rgb24'
      )
      if reformat:
        frame = frame.reformat(format=pixels, **reformat)
      frame.pts = i if times is None else times[i]
      frame.time_base = base
      file.mux(stream.encode(frame))
    file.mux(stream.encode())
    if audio is not None:
      _silence(file, audio, sound)
  if matrix is not None:
    set_matrix(path, matrix)
  return path


def set_matrix(path, matrix):
  """Sets the display matrix a, b, c, d of the first track of an MP4."""
  data = bytearray(path.read_bytes())
  at = data.index(b'tkhd') + 4 + 40
  for offset, value in zip((0, 4, 12, 16), matrix, strict=True):
    data[at + offset : at + offset + 4] = (value << 16).to_bytes(
      4, 'big', signed=True
    )
  path.write_bytes(data)


def lossless(path, video_FHWC, **settings):
  return encode(path, video_FHWC, codec='ffv1', pixels='bgr0', **settings)


def sound_only(path, codec='pcm_s16le'):
  """A file without a video stream: a tenth of a second of silence."""
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=8000, layout='mono')
    _silence(container, stream, 0.1)


def _silence(container, stream, seconds, rate=8000):
  size = 800
  for at in range(0, round(seconds * rate), size):
    frame = av.AudioFrame.from_ndarray(
      np.zeros((1, size), np.int16), format='s16', layout='mono'
    )
    frame.sample_rate, frame.pts = rate, at
    frame.time_base = fractions.Fraction(1, rate)
    container.mux(stream.encode(frame))
  container.mux(stream.encode())


def cut_short(path, *, keep=0.2, frames=40):
  """An MP4 whose index comes first and whose end is missing, as after a
  download that broke."""
  rng = np.random.default_rng(0)
  video_FHWC = rng.integers(0, 255, (frames, 32, 48, 3), dtype=np.uint8)
  with av.open(str(path), 'w', options={'movflags': '+faststart'}) as container:
    stream = container.add_stream('libx264', rate=10, options={'g': '10'})
    stream.height, stream.width, stream.pix_fmt = 32, 48, 'yuv420p'
    for image_HWC in video_FHWC:
      frame = av.VideoFrame.from_ndarray(image_HWC, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * keep)])
  return path


def long_sound(path, *, frames=5, seconds=3.0):
  """A Matroska of a few frames at 10 a second and of longer sound."""
  with av.open(str(path), 'w') as container:
    video = container.add_stream('ffv1', rate=10)
    video.height, video.width, video.pix_fmt = 32, 48, 'bgr0'
    sound = container.add_stream('pcm_s16le', rate=8000, layout='mono')
    for image_HWC in gray_clip(frames):
      frame = av.VideoFrame.from_ndarray(
        np.ascontiguousarray(image_HWC), format='rgb24'
      )
      container.mux(video.encode(frame))
    container.mux(video.encode())
    frame = av.AudioFrame.from_ndarray(
      np.zeros((1, int(8000 * seconds)), np.int16), format='s16', layout='mono'
    )
    frame.sample_rate = 8000
    container.mux(sound.encode(frame))
    container.mux(sound.encode())
  return path


def frame_numbers(video_FHWC):
  """The frame numbers of gray_clip."""
  mean_F = video_FHWC.reshape(len(video_FHWC), -1).mean(axis=1)
  return np.round(mean_F / 8).astype(int).tolist()
