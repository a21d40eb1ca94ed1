"""Opens video files that nobody has vetted: containers, codecs and sizes that
are not on the lists here are refused before a frame is decoded."""

import contextlib
import os
from collections.abc import Iterator

import av

from spacetime.media import files

Path = str | os.PathLike

# FFmpeg's names. A playlist (concat, HLS, DASH) would read other files.
CONTAINERS = (
  *('mov', 'matroska', 'avi', 'gif', 'apng', 'mpeg', 'mpegts', 'mpegvideo'),
  *('flv', 'asf', 'ogg', 'ivf', 'dv', 'mxf'),
)
CODECS = (
  *('h264', 'hevc', 'vp8', 'vp9', 'av1', 'libdav1d', 'libvpx', 'libvpx-vp9'),
  *('mpeg1video', 'mpeg2video', 'mpeg4', 'msmpeg4v1', 'msmpeg4v2', 'msmpeg4'),
  *('h263', 'flv', 'wmv1', 'wmv2', 'wmv3', 'vc1', 'theora', 'dvvideo'),
  *('prores', 'dnxhd', 'ffv1', 'huffyuv', 'ffvhuff', 'utvideo', 'rawvideo'),
  *('mjpeg', 'gif', 'png', 'apng', 'qtrle'),
)
ALPHA_DECODERS = {'vp8': 'libvpx', 'vp9': 'libvpx-vp9'}
# 8K video has 33 million, and needs some 0.3 GiB a frame while it is converted.
MAX_PIXELS = 2**26
# Decoders with a thread for each frame keep as many frames in memory.
THREADS = 4


@contextlib.contextmanager
def open_video(
  path: Path,
) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
  """Yields the container of a file and its video stream.

  Cover pictures are not video. Of several streams it is the first that is
  marked as the default, or the first. Only the file itself is read, whatever it
  refers to. Errors of FFmpeg in the block become ValueErrors.

  Raises:
    ValueError: no such file, no video in it, a container or codec that is not
      read, frames above MAX_PIXELS, or unreadable.
  """
  path = files.as_path(path)
  if not files.is_url(path):
    files.check_file(path)
  elif not files.exists(path) or path.is_dir():
    raise ValueError(f'{path}: no such file')
  options = {
    'format_whitelist': ','.join(CONTAINERS),
    'codec_whitelist': ','.join(CODECS),
    'protocol_whitelist': 'file',
    # FFmpeg may decode a frame to find the format. Twice, so that sizes above
    # the limit are refused by name.
    'max_pixels': str(2 * MAX_PIXELS),
  }
  try:
    # An absolute path cannot be read as the name of a protocol. Of a bucket,
    # only the parts that are decoded are read.
    remote = files.is_url(path)
    container = av.open(
      path.open('rb') if remote else os.fspath(path.absolute()),
      options=options,
      metadata_errors='replace',
    )
  except av.ArgumentError as e:  # of a format that is not on the list
    raise ValueError(
      f'{path} cannot be read as a video (expected a container of '
      f'{", ".join(CONTAINERS)})'
    ) from e
  except av.FFmpegError as e:
    raise _unreadable(path, e) from e
  try:
    with container:
      stream = _video_stream(path, container)
      _check_codec(path, stream.codec_context)
      yield container, stream
  except av.FFmpegError as e:
    raise _unreadable(path, e) from e


def decode(
  container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> Iterator[av.VideoFrame]:
  """The frames of a stream from where its container stands."""
  decoder = ALPHA_DECODERS.get(stream.codec_context.name)
  tags = {key.lower(): value for key, value in stream.metadata.items()}
  if decoder is None or tags.get('alpha_mode') != '1':
    yield from container.decode(stream)
    return
  # FFmpeg's own decoders of VP8 and VP9 leave the alpha channel out.
  context = av.CodecContext.create(decoder, 'r')
  _limit(context)
  for packet in container.demux(stream):
    yield from context.decode(packet)


def video_streams(container: av.container.InputContainer) -> list:
  """The video streams of a container without its cover pictures."""
  cover = av.stream.Disposition.attached_pic
  return [s for s in container.streams.video if not s.disposition & cover]


def check_pixels(path: Path, width: int, height: int) -> None:
  """Refuses frames or images above MAX_PIXELS.

  Raises:
    ValueError: too large.
  """
  if width * height > MAX_PIXELS:
    raise ValueError(
      f'{path} is {width}x{height} pixels; expected at most {MAX_PIXELS} in all'
    )


def average_rate(stream: av.video.stream.VideoStream) -> float:
  """Frames per second as the container states them, 25 where it does not."""
  average, guessed = stream.average_rate, stream.guessed_rate
  if average and guessed and average * stream.time_base == 1:
    # Of raw DV, FFmpeg's average is that of timestamps.
    average = guessed if 2 * guessed < average else average
  return float(average or guessed or 25)


# -- within --------------------------------------------------------------------


def _unreadable(path: Path, error: av.FFmpegError) -> ValueError:
  return ValueError(
    f'{path} cannot be read as a video ({error.strerror or error})'
  )


def _video_stream(path: Path, container) -> av.video.stream.VideoStream:
  streams = video_streams(container)
  if streams:
    # As players do: the stream that is marked as the default, else the first.
    default = av.stream.Disposition.default
    marked = [s for s in streams if s.disposition & default]
    return (marked or streams)[0]
  cover = ' but a cover picture' if container.streams.video else ''
  raise ValueError(f'{path} has no video stream{cover}')


def _check_codec(path: Path, context) -> None:
  if context is None or context.name not in CODECS:
    name = 'unknown' if context is None else context.name
    raise ValueError(
      f'{path} has the video codec {name}; expected one of {", ".join(CODECS)}'
    )
  check_pixels(path, context.width or 0, context.height or 0)
  _limit(context)


def _limit(context) -> None:
  context.thread_type = 'AUTO'
  context.thread_count = min(THREADS, os.cpu_count() or 1)
  context.options = {'max_pixels': str(MAX_PIXELS)}
