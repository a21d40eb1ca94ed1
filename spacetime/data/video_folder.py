"""A folder of captioned video files as a random-access source of clips.

Captions are in VIDEO.txt beside VIDEO.mp4, or for all files in one table; see
caption_files.py.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from concurrent import futures

import numpy as np
from absl import logging

from spacetime.data import caption_files
from spacetime.media import display, resampling, video_reader

# Threads that open the files of a folder.
THREADS = 8


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
    with futures.ThreadPoolExecutor(THREADS) as pool:
      infos = list(pool.map(video_reader.probe, captions.by_video))
    videos = dict(zip(captions.by_video, infos, strict=True))
    for path, info in videos.items():
      if resampling.length_at(info.seconds, fps=fps) < frames:
        raise video_reader.too_short(
          path, frames=frames, fps=fps, actual=f'{info.seconds:.3f} seconds'
        )
      self.clips.append(Clip(path, captions.by_video[path]))
    for note in _notes(videos, height=height, width=width):
      logging.warning('%s: %s', folder, note)

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


def _notes(
  videos: Mapping[pathlib.Path, video_reader.VideoInfo],
  *,
  height: int,
  width: int,
) -> Iterator[str]:
  """What reading changes in the videos, with the number of those affected."""
  shares = {
    path: display.cropped_share(
      info.height, info.width, to_height=height, to_width=width
    )
    for path, info in videos.items()
  }
  cropped = [path for path in shares if shares[path] > display.CROP]
  if cropped:
    worst = max(cropped, key=shares.get)
    yield (
      f'{len(cropped)} of {len(videos)} clips lose more than '
      f'{100 * display.CROP:g} % of their area to the crop to '
      f'{width}x{height}, the most {100 * shares[worst]:.0f} % of '
      f'{videos[worst].width}x{videos[worst].height}, {worst}'
    )
  affected = collections.defaultdict(list)
  for path, info in videos.items():
    for remark in info.remarks:
      affected[remark].append(path)
  for remark, paths in affected.items():
    count = f'{len(paths)} of {len(videos)} clips'
    yield f'{count} are {remark}; such as {paths[0]}'
