"""Video and image files -> frames: upright, resampled, resized and cropped."""

import math
import os
import pathlib
from collections.abc import Iterator

import av
import numpy as np
from PIL import Image, ImageOps

Path = str | os.PathLike


def read_video(
  path: Path,
  *,
  frames: int | None = None,
  height: int | None = None,
  width: int | None = None,
  fps: float | None = None,
  start: float = 0.0,
) -> np.ndarray:
  """Reads the frames of a video file.

  At each time of the result stands the frame that a player would show then. The
  short side is resized and the centre cropped.

  Args:
    path: any container and codec that FFmpeg reads.
    frames: number of frames; None reads to the end.
    height: pixel rows; None keeps those of the file.
    width: pixel columns; None keeps those of the file.
    fps: frames per second of the result; None keeps the file's average rate.
    start: seconds after the first frame.

  Returns:
    uint8 (F, H, W, 3).

  Raises:
    ValueError: no such file, no video in it, unreadable, or too short.
  """
  _check_positive(frames=frames, height=height, width=width, fps=fps)
  try:
    with _open(path) as container:
      fps = fps or float(_average_rate(container.streams.video[0]))
      chosen = _resampled(path, container, frames=frames, fps=fps, start=start)
  except av.FFmpegError as e:
    raise _unreadable(path, e) from e
  first = _upright(chosen[0])
  size = {'height': height or first.height, 'width': width or first.width}
  fitted = {}
  for frame in chosen:
    if id(frame) not in fitted:
      fitted[id(frame)] = fit(_upright(frame), **size)
  return np.stack([fitted[id(frame)] for frame in chosen])


def video_size(path: Path) -> tuple[int, int]:
  """Height and width in pixels of a file's first frame, upright.

  Raises:
    ValueError: no such file, no video in it, or unreadable.
  """
  try:
    with _open(path) as container:
      for _, _, frame in _timed_frames(container, start=0):
        width, height = _upright(frame).size
        return height, width
  except av.FFmpegError as e:
    raise _unreadable(path, e) from e
  raise too_short(path, frames=1, fps=1, actual='none')


def video_seconds(path: Path) -> float | None:
  """Duration in seconds, None where the container does not state it.

  Raises:
    ValueError: no such file, no video in it, or unreadable.
  """
  with _open(path) as container:
    stream = container.streams.video[0]
    if stream.duration is not None and stream.time_base is not None:
      return float(stream.duration * stream.time_base)
    if container.duration is not None:
      return container.duration / av.time_base
  return None


def video_rate(path: Path) -> float:
  """Average frames per second of a file.

  Raises:
    ValueError: no such file, no video in it, or unreadable.
  """
  with _open(path) as container:
    return float(_average_rate(container.streams.video[0]))


def read_image(
  path: Path, *, height: int | None = None, width: int | None = None
) -> np.ndarray:
  """Reads an image, upright; the short side is resized, the centre cropped.

  Args:
    path: any format that Pillow reads.
    height: pixel rows; None keeps those of the file.
    width: pixel columns; None keeps those of the file.

  Returns:
    uint8 (H, W, 3).

  Raises:
    ValueError: no such file, or not an image.
  """
  _check_positive(height=height, width=width)
  path = pathlib.Path(path)
  _check_exists(path)
  try:
    with Image.open(path) as image:
      upright = ImageOps.exif_transpose(image).convert('RGB')
  except (OSError, SyntaxError, Image.DecompressionBombError) as e:
    raise ValueError(f'{path} cannot be read as an image ({e})') from e
  return fit(
    upright, height=height or upright.height, width=width or upright.width
  )


def too_short(
  path: Path, *, frames: int, fps: float, actual: str
) -> ValueError:
  """The error for a file that holds fewer frames than expected."""
  return ValueError(
    f'{path} is too short: expected {frames} frames at {fps} per second, got '
    f'{actual}'
  )


# -- within --------------------------------------------------------------------


def _check_positive(**sizes: float | None) -> None:
  if any(size is not None and size <= 0 for size in sizes.values()):
    text = ', '.join(f'{name}={size}' for name, size in sizes.items())
    raise ValueError(f'{text}: expected all above 0')


def _check_exists(path: pathlib.Path) -> None:
  if not path.is_file():
    raise ValueError(f'{path}: no such file')


def _unreadable(path: Path, error: Exception) -> ValueError:
  return ValueError(f'{path} cannot be read as a video ({error})')


def _open(path: Path) -> av.container.InputContainer:
  path = pathlib.Path(path).expanduser()
  _check_exists(path)
  try:
    container = av.open(os.fspath(path))
  except av.FFmpegError as e:
    raise _unreadable(path, e) from e
  if not container.streams.video:
    container.close()
    raise ValueError(f'{path} has no video stream')
  return container


def _average_rate(stream: av.video.stream.VideoStream):
  return stream.average_rate or stream.guessed_rate or 25


def _resampled(
  path: Path, container, *, frames: int | None, fps: float, start: float
) -> list[av.VideoFrame]:
  """The frame that is shown at start, start + 1 / fps, ..."""
  chosen = []
  end = held = None
  most = math.inf if frames is None else frames
  for time, length, frame in _timed_frames(container, start=start):
    # A millisecond forgives the rounded times of Matroska.
    while held is not None and len(chosen) < most:
      if start + len(chosen) / fps >= time - 1e-3:
        break
      chosen.append(held)
    if len(chosen) == most:
      break
    held, end = frame, time + length
  while held is not None and len(chosen) < most:
    if start + len(chosen) / fps > end - 1e-3:
      if frames is None:
        break
      actual = f'{len(chosen)} from {start} s'
      raise too_short(path, frames=frames, fps=fps, actual=actual)
    chosen.append(held)
  if not chosen:
    raise too_short(
      path, frames=frames or 1, fps=fps, actual=f'0 from {start} s'
    )
  return chosen


def _timed_frames(
  container: av.container.InputContainer, *, start: float
) -> Iterator[tuple[float, float, av.VideoFrame]]:
  """Each frame with its time after the first one and its length, in seconds."""
  stream = container.streams.video[0]
  stream.thread_type = 'AUTO'
  rate = _average_rate(stream)
  first = stream.start_time
  if start > 0 and first is not None:
    container.seek(
      int(first + start / stream.time_base), stream=stream, backward=True
    )
  for i, frame in enumerate(container.decode(stream)):
    if frame.pts is None:
      yield float(i / rate), float(1 / rate), frame
      continue
    if first is None:
      first = frame.pts
    base = frame.time_base or stream.time_base
    length = float(frame.duration * base) if frame.duration else 0.0
    yield float((frame.pts - first) * base), length or float(1 / rate), frame


def _upright(frame: av.VideoFrame) -> Image.Image:
  image = Image.fromarray(frame.to_ndarray(format='rgb24'))
  turns = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
  }
  turn = turns.get(round(frame.rotation) % 360)
  return image if turn is None else image.transpose(turn)


def fit(image: Image.Image, *, height: int, width: int) -> np.ndarray:
  """An image whose short side is resized and whose centre is cropped, in one
  resampling: uint8 (H, W, 3)."""
  scale = min(image.width / width, image.height / height)
  crop_width, crop_height = scale * width, scale * height
  left = (image.width - crop_width) / 2
  top = (image.height - crop_height) / 2
  box = (left, top, left + crop_width, top + crop_height)
  if image.size == (width, height):
    return np.asarray(image)
  return np.asarray(
    image.resize((width, height), Image.Resampling.BICUBIC, box=box)
  )
