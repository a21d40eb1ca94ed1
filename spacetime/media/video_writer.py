"""Frames -> files: MP4, WebM, GIF, PNG, JSON sidecars.

A file appears complete or not at all (media/files.py).
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
from PIL import Image

from spacetime import SettingError
from spacetime.media import codecs, files, gif

Path = str | os.PathLike

CONTAINER = {
  '.mp4': {'movflags': '+faststart'},
  '.webm': {'fflags': '+bitexact'},
}
SUFFIXES = ('.mp4', '.webm', '.gif', '.png')


class VideoWriter:
  """Streams frames into a video file, in memory constant in its duration.

  Players need even sides in YUV 4:2:0: an odd side is padded by its last row or
  column.

  Args:
    path: FILE.mp4 or FILE.webm.
    fps: frames per second, 0.001 to 1000.

  Raises:
    ValueError: another suffix, a path that cannot be written, or frames of
      unequal size.
  """

  def __init__(self, path: Path, *, fps: float = 8):
    self.path = check_output(path)
    if self.path.suffix.lower() not in codecs.CODECS:
      raise SettingError(
        'out', os.fspath(path), f'a file of {" or ".join(codecs.CODECS)}'
      )
    self._fps = codecs.frame_rate(fps)
    self._temporary = files.temporary_path(self.path)
    self._suffix = self.path.suffix.lower()
    self._container = self._stream = self._shape = None
    self.frames = 0

  def __enter__(self) -> 'VideoWriter':
    return self

  def __exit__(self, kind, *exception) -> None:
    if kind is None:
      self.close()
    else:
      self.discard()

  def append(self, frames_FHWC: np.ndarray) -> None:
    """Encodes frames, uint8 (F, H, W, 3)."""
    codecs.check_frames(frames_FHWC)
    if self._shape is None:
      self._open(*frames_FHWC.shape[1:3])
    if frames_FHWC.shape[1:3] != self._shape:
      raise ValueError(
        f'frames are {frames_FHWC.shape[1:3]}; expected {self._shape}, the '
        f'size of the first frames in {self.path}'
      )
    for frame in codecs.video_frames(frames_FHWC):
      frame.pts = self.frames
      self._container.mux(self._stream.encode(frame))
      self.frames += 1

  def close(self) -> None:
    """Completes the file and moves it to its path."""
    if self._container is None:
      raise ValueError(f'{self.path}: no frames to write; expected 1 or more')
    try:
      self._container.mux(self._stream.encode())
      self._container.close()
      self._container = None
      self._temporary.replace(self.path)
    finally:
      self.discard()

  def discard(self) -> None:
    """Removes the incomplete file."""
    container, self._container = self._container, None
    try:
      if container is not None:
        container.close()
    except OSError:  # a full disk, which the file is removed from
      pass
    finally:
      self._temporary.unlink(missing_ok=True)

  def _open(self, height: int, width: int) -> None:
    self._shape = (height, width)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._container = av.open(
      os.fspath(self._temporary),
      'w',
      format=self._suffix[1:],
      options=CONTAINER[self._suffix],
    )
    self._stream = codecs.add_stream(
      self._container,
      self._suffix,
      rate=self._fps,
      height=height,
      width=width,
    )


def write_video(
  path: Path, frames_FHWC: np.ndarray, *, fps: float = 8
) -> pathlib.Path:
  """Writes frames in the format of the path's suffix.

  Args:
    path: FILE.mp4 (H.264), FILE.webm (VP9), FILE.gif (loops for ever), FILE.png
      (one frame: the image; more: a folder FILE/ of 00000.png, 00001.png ...),
      or a folder, with a final slash, for PNG frames.
    frames_FHWC: uint8 (F, H, W, 3).
    fps: frames per second.

  Returns:
    The path of the file or folder.

  Raises:
    ValueError: frames, rate or path that cannot be written.
  """
  codecs.check_frames(frames_FHWC)
  rate = codecs.frame_rate(fps)
  target = check_output(path)
  check_rate(path, fps=fps)
  suffix = target.suffix.lower()
  if writes_folder(path, frames=len(frames_FHWC)):
    folder = output_path(path, frames=len(frames_FHWC))
    return _write_frames(folder, frames_FHWC)
  if suffix in codecs.CODECS:
    with VideoWriter(path, fps=fps) as writer:
      writer.append(frames_FHWC)
    return target
  if suffix == '.gif':
    with files.atomic_write(target) as temporary:
      gif.write(temporary, frames_FHWC, rate=rate)
    return target
  return write_image(target, frames_FHWC[0])


def check_rate(path: Path, *, fps: float) -> None:
  """Checks, before sampling, that a format can have a rate.

  Raises:
    SettingError: no file can have it, or a GIF of more frames a second than its
      players show.
  """
  codecs.frame_rate(fps)
  if pathlib.Path(path).suffix.lower() == '.gif' and fps > gif.MOST:
    raise SettingError(
      'fps',
      fps,
      f'at most {gif.MOST} for a GIF, whose players show every frame for two '
      'hundredths of a second or more',
      hint='write an .mp4',
    )


def writes_folder(path: Path, *, frames: int) -> bool:
  """Whether write_video writes so many frames as a folder of images."""
  suffix = pathlib.Path(path).suffix.lower()
  return _is_folder(path) or (suffix == '.png' and frames > 1)


def output_path(path: Path, *, frames: int) -> pathlib.Path:
  """The file or folder that write_video writes for so many frames."""
  target = files.check_local('out', path)
  if writes_folder(path, frames=frames) and not _is_folder(path):
    return target.with_suffix('')
  return target


def sidecar_path(path: Path) -> pathlib.Path:
  """FILE.mp4.json for FILE.mp4."""
  path = files.check_local('out', path)
  return path.with_name(f'{path.name}.json')


def write_image(path: Path, image_HWC: np.ndarray) -> pathlib.Path:
  """Writes an image, uint8 (H, W, 3), as PNG or JPEG by its suffix."""
  path = files.check_local('out', path)
  with files.atomic_write(path) as temporary:
    Image.fromarray(np.ascontiguousarray(image_HWC)).save(temporary)
  return path


def write_sidecar(path: Path, settings: Mapping[str, Any]) -> pathlib.Path:
  """Writes the settings of a video as FILE.mp4.json beside FILE.mp4.

  Args:
    path: the video, or a folder of frames.
    settings: plain values.

  Returns:
    The JSON's path.
  """
  path = sidecar_path(path)
  with files.atomic_write(path) as temporary:
    temporary.write_text(
      json.dumps(settings, indent=2, ensure_ascii=False) + '\n', 'utf-8'
    )
  return path


def check_output(path: Path) -> pathlib.Path:
  """Checks, before sampling, that a video can be written under a path.

  Makes and changes nothing.

  Raises:
    SettingError: an unknown suffix, or a folder where a file is expected.
    ValueError: the folder cannot be written, or holds other files.
  """
  target = files.check_local('out', path)
  suffix = target.suffix.lower()
  folder = _is_folder(path)
  if not str(path) or not folder and suffix not in SUFFIXES:
    raise SettingError(
      'out',
      str(path),
      f'a file of {", ".join(SUFFIXES)}, or a folder for PNG frames, with a '
      'final slash',
    )
  if not folder and target.is_dir():
    raise SettingError('out', str(path), 'a file name, not a folder')
  if folder and target.exists() and not target.is_dir():
    raise SettingError('out', str(path), 'a folder, not a file')
  if folder:
    check_folder(target)
  files.check_writable(target.parent)
  return target


def check_folder(folder: pathlib.Path) -> None:
  """Checks that frames may be written as images into a folder.

  Frames replace frames, and nothing else.

  Raises:
    ValueError: a file of that name, or a folder with other files.
  """
  if not folder.exists():
    return
  if not folder.is_dir():
    raise ValueError(f'{folder} is a file; expected a folder for the frames')
  for path in folder.iterdir():
    if path.suffix != '.png' or not path.stem.isdigit():
      raise ValueError(
        f'{folder} holds other files, such as {path.name}; expected an empty '
        'folder or one of frames'
      )


# -- within --------------------------------------------------------------------


def _write_frames(
  folder: pathlib.Path, frames_FHWC: np.ndarray
) -> pathlib.Path:
  check_folder(folder)
  with files.atomic_folder(folder, replace=True) as temporary:
    for i, image_HWC in enumerate(frames_FHWC):
      write_image(temporary / f'{i:05d}.png', image_HWC)
  return folder


def _is_folder(path: Path) -> bool:
  # A pathlib.Path has no final slash.
  path, text = pathlib.Path(path), os.fspath(path)
  return (
    text.endswith('/') or not path.suffix and files.with_home(path).is_dir()
  )
