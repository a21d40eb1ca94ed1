"""Video files -> frames: upright, resampled, resized and cropped.

Frames are made small as they are decoded: the memory in use is that of the
result and of a few decoded frames, whatever the length of the file.
"""

import collections
import contextlib
import dataclasses
import functools
import math
import os
import struct
from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image

from spacetime.media import color, display, video_file
from spacetime.media.resampling import resample

Path = str | os.PathLike

# Remarks of probe.
INTERLACED = 'interlaced: the two fields of a frame stay woven'
HDR = 'HDR: tone-mapped to SDR'
TRANSPARENT = 'transparent: laid over white'
CUT_SHORT = 'cut short: it ends before the duration that it states'
SEVERAL = 'of several video streams, of which the default is read'
# Seconds at the end of a file, of which all packets are read for its duration.
TAIL = 2
# Seconds by which a file may end before the duration that it states.
SLACK = 0.5
# Seconds by which the times of frames may go back.
DISORDER = 0.5


@dataclasses.dataclass(frozen=True)
class VideoInfo:
  """Properties of a video file as it is shown.

  Attributes:
    height: rows, upright.
    width: columns, upright, with square pixels.
    fps: average frames per second.
    seconds: duration of the pictures, from the first frame's time to the end of
      the last; sound and the container may be longer.
    remarks: what reading changes or cannot mend, of INTERLACED, HDR,
      TRANSPARENT, CUT_SHORT and SEVERAL.
  """

  height: int
  width: int
  fps: float
  seconds: float
  remarks: tuple[str, ...] = ()


def read_video(
  path: Path,
  *,
  frames: int | None = None,
  most: int | None = None,
  height: int | None = None,
  width: int | None = None,
  fps: float | None = None,
  start: float = 0.0,
) -> np.ndarray:
  """Reads the frames of a video file.

  At each time of the result stands the frame nearest in time, or the one that a
  player would show then (media/resampling.py). Pixels are square and colours
  are those of a player (media/color.py). The short side is resized and the
  centre cropped.

  Args:
    path: a file of the containers and codecs of media/video_file.py.
    frames: number of frames; None reads to the end.
    most: largest number of frames, if the file has so many; None is no limit.
    height: pixel rows; None keeps those of the file.
    width: pixel columns; None keeps those of the file.
    fps: frames per second of the result; None keeps the file's average rate.
    start: seconds after the first frame.

  Returns:
    uint8 (F, H, W, 3).

  Raises:
    ValueError: no such file, no video in it, unreadable, damaged where the
      decoder reports it, too short, or more than the memory holds.
  """
  _check_positive(frames=frames, most=most, height=height, width=width, fps=fps)
  fps = fps or _average_rate(path)
  result, last, image_HWC = [], None, None
  timed, count = _timed_frames(path, start=start), frames or most
  for frame in resample(timed, fps=fps, start=start, count=count):
    if frame is not last:
      last, image_HWC = frame, frame.fitted(height=height, width=width)
      # Frames of a file may change in size.
      height, width = image_HWC.shape[:2]
    result.append(image_HWC)
    if len(result) * image_HWC.nbytes > _memory():
      raise ValueError(
        f'{path} does not fit in memory at {width}x{height} and {fps:g} frames '
        f'per second; read fewer frames, or cut it'
      )
  if not result or frames is not None and len(result) < frames:
    raise too_short(
      path, frames=frames or 1, fps=fps, actual=f'{len(result)} from {start} s'
    )
  return _stacked(result)


def read_frames(
  path: Path, indices: Sequence[int], *, fps: float
) -> list[np.ndarray]:
  """Some frames of read_video(path, fps=fps), in memory of these alone.

  Args:
    path: the file.
    indices: numbers of frames in order, one or more; those after the end are
      left out.
    fps: frames per second of the numbers.

  Raises:
    ValueError: see read_video.
  """
  images, counts = [], collections.Counter(map(int, indices))
  chosen = resample(_timed_frames(path), fps=fps, count=1 + max(counts))
  for index, frame in enumerate(chosen):
    if counts[index]:
      images += [frame.fitted()] * counts[index]
  if not images:
    raise too_short(path, frames=1, fps=fps, actual='none')
  return images


def probe(path: Path) -> VideoInfo:
  """Size, rate and duration of a file, of which the first frame is decoded.

  Raises:
    ValueError: no such file, no video in it, or unreadable.
  """
  fps = _average_rate(path)
  with video_file.open_video(path) as (container, stream):
    first = next(_decode(path, container, stream, None), None)
    if first is None:
      raise too_short(path, frames=1, fps=fps, actual='none')
    _, length, frame = first
    seconds, is_cut_short = _duration(path, container, stream, frame.pts)
    several = len(video_file.video_streams(container)) > 1
  height, width = frame.size
  remarks = frame.remarks + (CUT_SHORT,) * is_cut_short + (SEVERAL,) * several
  return VideoInfo(height, width, fps, max(length, seconds), remarks)


def video_size(path: Path) -> tuple[int, int]:
  """Height and width in pixels of a file's first frame, upright and square.

  Raises:
    ValueError: no such file, no video in it, or unreadable.
  """
  with contextlib.closing(_timed_frames(path)) as frames:
    for _, _, frame in frames:
      return frame.size
  raise too_short(path, frames=1, fps=1, actual='none')


def too_short(
  path: Path, *, frames: int, fps: float, actual: str
) -> ValueError:
  """The error for a file that holds fewer frames than expected."""
  return ValueError(
    f'{path} is too short: expected {frames} frames at {fps} per second, got '
    f'{actual}'
  )


# -- within --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Frame:
  """A decoded frame and how it is shown."""

  path: Path
  decoded: av.VideoFrame
  pixel_aspect: float
  matrix: tuple[float, float, float, float]  # see display.turn

  @property
  def pts(self) -> int | None:
    return self.decoded.pts

  @property
  def size(self) -> tuple[int, int]:
    """Height and width as shown."""
    size = display.square_size(
      self.decoded.height, self.decoded.width, self.pixel_aspect
    )
    video_file.check_pixels(self.path, *size[::-1])
    return size[::-1] if display.turns_sideways(self.matrix) else size

  @property
  def remarks(self) -> tuple[str, ...]:
    remarks = (
      (INTERLACED, self.decoded.interlaced_frame),
      (HDR, color.is_hdr(self.decoded)),
      (TRANSPARENT, color.is_transparent(self.decoded)),
    )
    return tuple(remark for remark, applies in remarks if applies)

  def fitted(
    self, *, height: int | None = None, width: int | None = None
  ) -> np.ndarray:
    """The frame at a size, by default its own: uint8 (H, W, 3)."""
    shown = self.size
    try:
      image_HWC = color.to_rgb(self.decoded)
    except ValueError as e:
      raise ValueError(f'{self.path}: {e}') from e
    aspect = self.pixel_aspect
    if self.matrix != display.UPRIGHT:
      image_HWC = display.turn(image_HWC, self.matrix)
      if display.turns_sideways(self.matrix):
        aspect = 1 / aspect
    return display.fit(
      Image.fromarray(image_HWC),
      height=height or shown[0],
      width=width or shown[1],
      pixel_aspect=aspect,
    )


def _check_positive(**sizes: float | None) -> None:
  if any(
    size is not None and not 0 < size < math.inf for size in sizes.values()
  ):
    text = ', '.join(f'{name}={size}' for name, size in sizes.items())
    raise ValueError(f'{text}: expected all above 0')


@functools.cache
def _memory() -> int:
  """Bytes of this machine's memory."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _average_rate(path: Path) -> float:
  with video_file.open_video(path) as (container, stream):
    rate = video_file.average_rate(stream)
    if container.format.name not in ('gif', 'apng'):
      return rate
    # These state no rate, and FFmpeg's is that of the first frames.
    spans = [
      (packet.pts, packet.duration or 0)
      for packet in container.demux(stream)
      if packet.size and packet.pts is not None
    ]
    if not spans:
      return rate
    ticks = sum(spans[-1]) - spans[0][0]
    return len(spans) / float(ticks * stream.time_base) if ticks > 0 else rate


def _timed_frames(
  path: Path, *, start: float = 0.0
) -> Iterator[tuple[float, float, _Frame]]:
  """Each frame with its time after the first one and its duration, in seconds.

  The first that is yielded is shown at `start` or before.
  """
  if start > 0:
    with video_file.open_video(path) as (container, stream):
      zero = next(
        (frame.pts for frame in video_file.decode(container, stream)), None
      )
      if zero is not None:
        frames = _seek(path, container, stream, zero, start)
        first = next(frames, None)
        # Not every container can be sought in exactly.
        if first is not None and first[0] <= start:
          yield first
          yield from frames
          return
  with video_file.open_video(path) as (container, stream):
    yield from _decode(path, container, stream, None)


def _seek(
  path: Path, container, stream, zero: int, start: float
) -> Iterator[tuple[float, float, _Frame]]:
  ticks = int(zero + start / stream.time_base)
  try:
    container.seek(ticks, stream=stream, backward=True)
  except av.FFmpegError:
    return
  yield from _decode(path, container, stream, zero)


def _display_matrix(frame: av.VideoFrame) -> tuple[float, float, float, float]:
  data = frame.side_data.get(Type.DISPLAYMATRIX)
  if data is None:
    return display.UPRIGHT
  a, b, _, c, d, *_ = struct.unpack('=9i', bytes(data)[:36])
  return (a, b, c, d) if a or b or c or d else display.UPRIGHT


def _decode(
  path: Path, container, stream, zero: int | None
) -> Iterator[tuple[float, float, _Frame]]:
  """Decodes from where the container stands; `zero` is the first frame's
  timestamp."""
  rate = video_file.average_rate(stream)
  aspect, matrix = float(stream.sample_aspect_ratio or 1) or 1.0, None
  latest = -math.inf
  for i, decoded in enumerate(video_file.decode(container, stream)):
    base = decoded.time_base or stream.time_base
    if decoded.pts is None:
      time = i / rate
    else:
      zero = decoded.pts if zero is None else zero
      time = float((decoded.pts - zero) * base)
    if time < latest - max(DISORDER, 2 / rate):
      # Frames at times that have passed would be left out.
      raise ValueError(
        f'{path}: the times of its frames go back from {latest:.3f} to '
        f'{time:.3f} s, as in files that are joined byte by byte; join them '
        'again by a program that knows the format'
      )
    latest = max(latest, time)
    if decoded.is_corrupt:
      raise ValueError(f'{path} is damaged {time:.3f} s after its start')
    if matrix is None:
      # Once, since PyAV's side data and their frame hold each other, and are
      # only freed by a garbage collection.
      matrix = _display_matrix(decoded)
    length = float(decoded.duration * base) if decoded.duration else 1 / rate
    yield time, length, _Frame(path, decoded, aspect, matrix)


def _duration(
  path: Path, container, stream, first: int | None
) -> tuple[float, bool]:
  """Seconds from a timestamp to the end of the stream's last packet, and
  whether the file ends before the duration that it states."""
  base, stated = stream.time_base, stream.duration
  total = (container.duration or 0) / av.time_base
  if first is None:  # a stream without timestamps
    with video_file.open_video(path) as (again, video):
      packets = sum(packet.size > 0 for packet in again.demux(video))
    return packets / video_file.average_rate(stream), False
  if stated is None and total:
    stated = int(total / base)
  end = first
  # Packets are not in the order of their times, and not every container finds
  # a key frame, so that more than the last is read.
  if stated is not None and stated * base > TAIL:
    with contextlib.suppress(av.FFmpegError):
      ticks = first + stated - int(TAIL / base)
      container.seek(ticks, stream=stream, backward=True)
      end, last = _end(container, stream, first)
  if end == first:  # nothing was sought, or nothing comes after it
    with video_file.open_video(path) as (again, video):
      end, last = _end(again, video, first)
  return float((end - first) * base), last < total - SLACK


def _end(container, stream, first: int) -> tuple[int, float]:
  """Timestamp of the end of the stream's packets from where the container
  stands, as far as they can be read, and seconds of the end of all packets."""
  tick = round(1 / (video_file.average_rate(stream) * stream.time_base))
  end, last = first, 0.0
  with contextlib.suppress(av.FFmpegError):
    for packet in container.demux():
      if packet.pts is None or not packet.size or packet.is_discard:
        continue
      is_video = packet.stream_index == stream.index
      finish = packet.pts + (packet.duration or tick * is_video)
      last = max(last, float(finish * packet.time_base))
      if is_video:
        end = max(end, finish)
  return end, last


def _stacked(images: list[np.ndarray]) -> np.ndarray:
  """Stacks images, freeing each once it is copied."""
  stacked = np.empty((len(images), *images[0].shape), np.uint8)
  images.reverse()
  for i in range(len(stacked)):
    stacked[i] = images.pop()
  return stacked
