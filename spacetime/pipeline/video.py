"""Video: frames with their rate and metadata; saves, shows and reads files."""

import base64
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from spacetime.media import codecs, video_reader, video_writer


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
  """A video in memory, or one image.

  Attributes:
    frames: uint8 (F, H, W, 3).
    fps: frames a second.
    metadata: settings of the video, as its sidecar stores them.

  Raises:
    ValueError: frames of another dtype or shape.
  """

  frames: np.ndarray
  fps: float = 8.0
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    codecs.check_frames(self.frames)

  def __len__(self) -> int:
    return len(self.frames)

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return np.array(self.frames, dtype=dtype, copy=copy)

  def __repr__(self) -> str:
    frames, height, width, _ = self.shape
    return f'Video({frames} frames, {width}x{height}, {self.fps:g} fps)'

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """(F, H, W, 3)."""
    return self.frames.shape

  def save(self, path: str | os.PathLike) -> pathlib.Path:
    """Writes the video and, if there is metadata, a JSON sidecar beside it.

    Args:
      path: FILE.mp4, .webm, .gif or .png, or a folder for frames.

    Returns:
      The file or folder written.

    Raises:
      ValueError: a path that cannot be written.
    """
    written = video_writer.write_video(path, self.frames, fps=self.fps)
    if self.metadata:
      video_writer.write_sidecar(path, self.metadata)
    return written

  def _repr_html_(self) -> str:
    """The video for a notebook: an embedded MP4, or a PNG of one frame."""
    suffix = '.png' if len(self) == 1 else '.mp4'
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / f'video{suffix}'
      video_writer.write_video(path, self.frames, fps=self.fps)
      data = base64.b64encode(path.read_bytes()).decode()
    width = max(self.shape[2], 256)
    if suffix == '.png':
      return f'<img width="{width}" src="data:image/png;base64,{data}">'
    return (
      f'<video width="{width}" controls autoplay loop muted '
      f'src="data:video/mp4;base64,{data}"></video>'
    )


def read_video(
  path: str | os.PathLike,
  *,
  fps: float | None = None,
  size: tuple[int, int] | None = None,
) -> Video:
  """Reads a video file; see media/video_reader.py.

  Args:
    path: the file.
    fps: frames a second to resample to; None keeps the file's.
    size: (width, height) to resize and crop to; None keeps the file's.

  Raises:
    ValueError: no such file, no video in it, or unreadable.
  """
  width, height = size or (None, None)
  info = video_reader.probe(path)
  for remark in info.remarks:
    logging.warning('%s is %s', path, remark)
  rate = fps or info.fps
  frames_FHWC = video_reader.read_video(
    path, height=height, width=width, fps=fps
  )
  return Video(frames_FHWC, rate)
