"""A folder of captioned video files as a random-access source of clips.

Captions are in VIDEO.txt beside VIDEO.mp4, or for all files in one table; see
caption_files.py.
"""

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures

import numpy as np
from absl import logging

from spacetime.data import caption_files, unreadable
from spacetime.media import display, files, resampling, video_reader

# Threads that open the files of a folder.
THREADS = 8


@dataclasses.dataclass(frozen=True)
class Clip:
  """The start of a video file, and its caption."""

  path: os.PathLike
  caption: str


class ClipFolder:
  """One clip from the start of each video: `len(folder)` and `folder[i]`.

  Args:
    folder: searched with its subfolders.
    frames: frames per clip, F.
    height: height in pixels, H.
    width: width in pixels, W.
    fps: frames per second of the clips; files of another rate are resampled.
    names: files of the clips relative to the folder, in their order; None takes
      all, sorted. One that is not there is a clip that cannot be read.
    max_unreadable: largest share of the clips that may be unreadable or too
      short. These keep their indices, and raise when they are read.

  Attributes:
    clips: the clips by index.
    errors: why clips cannot be read, by index, as far as it is known without
      decoding them.

  Raises:
    ValueError: no folder, no videos, videos without a caption, captions that
      cannot be read, or more clips than the limit that cannot be read.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    frames: int,
    height: int,
    width: int,
    fps: float,
    names: Sequence[str] | None = None,
    max_unreadable: float = 0.0,
  ):
    folder = files.as_path(folder)
    self._size = {
      'frames': frames,
      'height': height,
      'width': width,
      'fps': fps,
    }
    self.clips: list[Clip] = []
    self.errors: dict[int, str] = {}
    captions = caption_files.read(folder)
    for note in captions.notes:
      logging.warning('%s: %s', folder, note)
    self.files = {
      _relative(path, folder): Clip(path, caption)
      for path, caption in captions.by_video.items()
    }
    chosen = list(self.files if names is None else names)
    with futures.ThreadPoolExecutor(THREADS) as pool:
      probes = list(pool.map(self._probe, [folder / name for name in chosen]))
    videos = {}
    for index, (name, probe) in enumerate(zip(chosen, probes, strict=True)):
      clip = self.files.get(name)
      self.clips.append(clip or Clip(folder / name, ''))
      if clip is None:
        self.errors[index] = f'{folder / name} is no longer there'
      elif isinstance(probe, str):
        self.errors[index] = probe
      else:
        videos[clip.path] = probe
    self._check_errors(max_unreadable, recorded=names is not None)
    for note in _notes(videos, height=height, width=width, fps=fps):
      logging.warning('%s: %s', folder, note)

  def _probe(self, path: os.PathLike) -> video_reader.VideoInfo | str:
    """Size and duration of a file, or why it cannot be a clip."""
    frames, fps = self._size['frames'], self._size['fps']
    try:
      info = video_reader.probe(path)
    except (ValueError, OSError) as e:
      return str(e)
    if resampling.length_at(info.seconds, fps=fps) < frames:
      actual = f'{info.seconds:.3f} seconds'
      return str(
        video_reader.too_short(path, frames=frames, fps=fps, actual=actual)
      )
    return info

  def _check_errors(self, share: float, *, recorded: bool) -> None:
    """Raises ValueError if more than a share of the clips cannot be read."""
    bad, count = len(self.errors), len(self.clips)
    if bad <= unreadable.most(count, share):
      return
    reason = next(iter(self.errors.values()))
    if recorded:
      reason += (
        '; restore the clips that the run began with, or set `changes` to '
        "'adopt', which takes those that are there"
      )
    if not share:
      raise ValueError(reason)
    raise unreadable.over_limit(reason, bad=bad, count=count, share=share)

  def __len__(self) -> int:
    return len(self.clips)

  def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
    """{'video': uint8 (F, H, W, 3), 'caption': str}."""
    return self.read(index)

  def read(self, index: int, **size: int) -> dict[str, np.ndarray | str]:
    """A record with frames, height or width of its own, at most as many frames
    as the folder's clips have.

    Raises:
      UnreadableClipError: the clip cannot be read.
    """
    if index in self.errors:
      raise unreadable.UnreadableClipError(self.errors[index])
    clip = self.clips[index]
    try:
      video_FHWC = video_reader.read_video(clip.path, **(self._size | size))
    except (ValueError, OSError) as e:
      raise unreadable.UnreadableClipError(str(e)) from e
    return {'video': video_FHWC, 'caption': clip.caption}

  def caption(self, index: int) -> str:
    """The caption of a clip, without reading its video."""
    return self.clips[index].caption


def _relative(path, folder) -> str:
  """The name of a file from a folder, which a table may place elsewhere."""
  if path.is_relative_to(folder):
    return path.relative_to(folder).as_posix()
  return os.path.relpath(path, folder.resolve())


def _notes(
  videos: Mapping[os.PathLike, video_reader.VideoInfo],
  *,
  height: int,
  width: int,
  fps: float,
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
  slow = {
    p: i.fps for p, i in videos.items() if resampling.repeats(i.fps, fps=fps)
  }
  if slow:
    slowest = min(slow, key=slow.get)
    yield (
      f'{len(slow)} of {len(videos)} clips have fewer frames a second than '
      f'{fps:g}, so that frames are repeated; the fewest {slow[slowest]:.3g}, '
      f'{slowest}'
    )
  affected = collections.defaultdict(list)
  for path, info in videos.items():
    for remark in info.remarks:
      affected[remark].append(path)
  for remark, paths in affected.items():
    count = f'{len(paths)} of {len(videos)} clips'
    yield f'{count} are {remark}; such as {paths[0]}'
