"""Folders of video files as a random-access source; single files as arrays."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Literal

import av
import numpy as np
from PIL import Image, ImageOps

from spacetime.data import folder_captions

Path = str | os.PathLike


@dataclasses.dataclass(frozen=True)
class Clip:
  """One record to be read: seconds from `start` of a file, and its caption."""

  path: pathlib.Path
  start: float
  caption: str


class ClipFolder:
  """Clips of a folder of videos: `len(source)` and `source[i]`.

  Captions are in VIDEO.txt beside VIDEO.mp4, or for all files in captions.jsonl
  or metadata.csv with `file` and `caption`.

  Args:
    folder: searched with its subfolders.
    frames: frames per clip, F.
    height: rows, H.
    width: columns, W.
    fps: frames per second of the clips; files of another rate are resampled.
    windows: 'first' takes one clip from the start of each file, 'all' as many
      as fit one after another.

  Raises:
    ValueError: no folder, no videos, videos without a caption, a table that
      names what is not there, or a file that cannot be read or is too short.
  """

  def __init__(
    self,
    folder: Path,
    *,
    frames: int,
    height: int,
    width: int,
    fps: float,
    windows: Literal['first', 'all'] = 'first',
  ):
    if windows not in ('first', 'all'):
      raise ValueError(f"windows={windows!r}: expected 'first' or 'all'")
    _check_size(frames=frames, height=height, width=width, fps=fps)
    self._size = {
      'frames': frames,
      'height': height,
      'width': width,
      'fps': fps,
    }
    self.clips: list[Clip] = []
    for path, caption in folder_captions.captions(pathlib.Path(folder)).items():
      seconds = _duration(path)
      count = 1
      if seconds is not None:
        # A thousandth of a frame forgives times rounded by the container.
        count = int((seconds * fps + 1e-3) // frames)
        if count < 1:
          raise _too_short(path, frames, fps, f'{seconds:.3f} seconds')
      for i in range(count if windows == 'all' else 1):
        self.clips.append(Clip(path, i * frames / fps, caption))

  def __len__(self) -> int:
    return len(self.clips)

  def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
    """{'video': uint8 (F, H, W, 3), 'caption': str}."""
    clip = self.clips[index]
    video_FHWC = read_video(clip.path, start=clip.start, **self._size)
    return {'video': video_FHWC, 'caption': clip.caption}


def read_video(
  path: Path,
  *,
  frames: int | None,
  height: int,
  width: int,
  fps: float,
  start: float = 0.0,
) -> np.ndarray:
  """Frames of a file, upright, resampled in time, resized and cropped.

  At each time the frame that a player would show; the short side is resized
  and the centre cut out.

  Args:
    path: any container and codec that FFmpeg reads.
    frames: how many; None is all.
    height: rows.
    width: columns.
    fps: frames per second.
    start: seconds after the first frame.

  Returns:
    uint8 (F, H, W, 3).

  Raises:
    ValueError: no such file, no video in it, unreadable, or too short.
  """
  _check_size(frames=frames or 1, height=height, width=width, fps=fps)
  chosen = []
  end = held = None
  most = math.inf if frames is None else frames
  try:
    with _open(path) as container:
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
          raise _too_short(path, frames, fps, f'{len(chosen)} from {start} s')
        chosen.append(held)
  except av.FFmpegError as e:
    raise _unreadable(path, e) from e
  if not chosen:
    raise _too_short(path, frames or 1, fps, f'0 from {start} s')
  fitted = {}
  for frame in chosen:
    if id(frame) not in fitted:
      fitted[id(frame)] = _fit(_upright(frame), height=height, width=width)
  return np.stack([fitted[id(frame)] for frame in chosen])


def video_size(path: Path) -> tuple[int, int]:
  """Rows and columns of a file's first frame, upright.

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
  raise _too_short(path, 1, 1, 'none')


def read_image(path: Path, *, height: int, width: int) -> np.ndarray:
  """An image, upright, resized by its short side and cropped to its centre.

  Returns:
    uint8 (H, W, 3).

  Raises:
    ValueError: no such file, or no image.
  """
  _check_size(frames=1, height=height, width=width, fps=1)
  path = pathlib.Path(path)
  _check_exists(path)
  try:
    with Image.open(path) as image:
      upright = ImageOps.exif_transpose(image).convert('RGB')
  except (OSError, SyntaxError, Image.DecompressionBombError) as e:
    raise ValueError(
      f'{path} cannot be read as an image ({e}); change --image'
    ) from e
  return _fit(upright, height=height, width=width)


# -- within --------------------------------------------------------------------


def _check_size(*, frames: int, height: int, width: int, fps: float) -> None:
  if min(frames, height, width) < 1 or fps <= 0:
    raise ValueError(
      f'frames={frames}, height={height}, width={width}, fps={fps}: expected '
      'all above 0'
    )


def _check_exists(path: pathlib.Path) -> None:
  if not path.is_file():
    raise ValueError(f'{path} is no file; change --image, --video or data.dir')


def _too_short(path: Path, frames: int, fps: float, got: str) -> ValueError:
  return ValueError(
    f'{path} is too short: expected {frames} frames at {fps} per second, got '
    f'{got}; remove it, or change data.world.frames or data.fps'
  )


def _unreadable(path: Path, error: Exception) -> ValueError:
  return ValueError(
    f'{path} cannot be read as a video ({error}); change --video or remove it '
    'from data.dir'
  )


def _open(path: Path) -> av.container.InputContainer:
  path = pathlib.Path(path)
  _check_exists(path)
  try:
    container = av.open(os.fspath(path))
  except av.FFmpegError as e:
    raise _unreadable(path, e) from e
  if not container.streams.video:
    container.close()
    raise ValueError(
      f'{path} has no video stream; change --video or remove it from data.dir'
    )
  return container


def _duration(path: pathlib.Path) -> float | None:
  """Seconds, None where the container does not tell."""
  with _open(path) as container:
    stream = container.streams.video[0]
    if stream.duration is not None and stream.time_base is not None:
      return float(stream.duration * stream.time_base)
    if container.duration is not None:
      return container.duration / av.time_base
  return None


def _timed_frames(
  container: av.container.InputContainer, *, start: float
) -> Iterator[tuple[float, float, av.VideoFrame]]:
  """Each frame with its time after the first one and its length, in seconds."""
  stream = container.streams.video[0]
  stream.thread_type = 'AUTO'
  rate = stream.average_rate or stream.guessed_rate or 25
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


def _fit(image: Image.Image, *, height: int, width: int) -> np.ndarray:
  """Resizes the short side and cuts out the centre, in one resampling."""
  scale = min(image.width / width, image.height / height)
  cut_width, cut_height = scale * width, scale * height
  left = (image.width - cut_width) / 2
  top = (image.height - cut_height) / 2
  box = (left, top, left + cut_width, top + cut_height)
  if image.size == (width, height):
    return np.asarray(image)
  return np.asarray(
    image.resize((width, height), Image.Resampling.BICUBIC, box=box)
  )
