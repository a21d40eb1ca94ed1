"""A folder of captioned video files as a random-access source of clips.

Captions are in VIDEO.txt beside VIDEO.mp4, or for all files in one table; see
caption_files.py.
"""

import dataclasses
import os
import pathlib

import numpy as np
from absl import logging

from spacetime.data import caption_files
from spacetime.media import video_reader


@dataclasses.dataclass(frozen=True)
class Clip:
  """The start of a video file, and its caption."""

  path: pathlib.Path
  caption: str


class ClipFolder:
  """One clip from the start of each video: `len(folder)` and `folder[i]`.

  Args:
    folder: searched with its subfolders.
    frames: frames per clip, F.
    height: height in pixels, H.
    width: width in pixels, W.
    fps: frames per second of the clips; files of another rate are resampled.

  Raises:
    ValueError: no folder, no videos, videos without a caption, captions that
      cannot be read, or a video that cannot be read or is too short.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    frames: int,
    height: int,
    width: int,
    fps: float,
  ):
    self._size = {
      'frames': frames,
      'height': height,
      'width': width,
      'fps': fps,
    }
    self.clips: list[Clip] = []
    captions = caption_files.read(pathlib.Path(folder))
    for note in captions.notes:
      logging.warning('%s: %s', folder, note)
    for path, caption in captions.by_video.items():
      seconds = video_reader.video_seconds(path)
      # A thousandth of a frame forgives times rounded by the container.
      if seconds is not None and seconds * fps + 1e-3 < frames:
        raise video_reader.too_short(
          path, frames=frames, fps=fps, actual=f'{seconds:.3f} seconds'
        )
      self.clips.append(Clip(path, caption))

  def __len__(self) -> int:
    return len(self.clips)

  def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
    """{'video': uint8 (F, H, W, 3), 'caption': str}."""
    return self.read(index)

  def read(self, index: int, **size: int) -> dict[str, np.ndarray | str]:
    """A record with frames, height or width of its own, at most as many frames
    as the folder's clips have."""
    clip = self.clips[index]
    video_FHWC = video_reader.read_video(clip.path, **(self._size | size))
    return {'video': video_FHWC, 'caption': clip.caption}

  def caption(self, index: int) -> str:
    """The caption of a clip, without reading its video."""
    return self.clips[index].caption
