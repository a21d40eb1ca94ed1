"""A folder of captioned video files as a random-access source of clips.

Captions are in VIDEO.txt beside VIDEO.mp4, or for all files in captions.jsonl
or metadata.csv with the columns `file` and `caption`.
"""

import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from spacetime.media import video_reader

SUFFIXES = ('.mp4', '.webm', '.mkv', '.mov', '.m4v', '.avi', '.gif', '.mpg')
TABLES = ('captions.jsonl', 'metadata.csv')


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
    ValueError: no folder, no videos, videos without a caption, a table that
      names missing files, or a file that cannot be read or is too short.
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
    for path, caption in read_captions(pathlib.Path(folder)).items():
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


def find_videos(folder: pathlib.Path) -> list[pathlib.Path]:
  """The videos of a folder and its subfolders, sorted by name.

  Raises:
    ValueError: no folder, or no videos in it.
  """
  if not folder.is_dir():
    raise ValueError(f'{folder}: no such folder')
  paths = sorted(p for p in folder.rglob('*') if p.suffix.lower() in SUFFIXES)
  if not paths:
    raise ValueError(
      f'{folder} has no videos; expected files such as {", ".join(SUFFIXES)}'
    )
  return paths


def read_captions(folder: pathlib.Path) -> dict[pathlib.Path, str]:
  """Caption by video, sorted by name.

  Raises:
    ValueError: no folder, no videos, videos without a caption, or a table that
      cannot be read or names missing files.
  """
  if not folder.is_dir():
    raise ValueError(f'{folder}: no such folder')
  table = _read_table(folder)
  if table:
    absent = [name for name in table if not (folder / name).is_file()]
    if absent:
      raise ValueError(
        f'{folder}: the table names {len(absent)} missing files, such as '
        f'{absent[0]}; correct the table'
      )
    return {folder / name: table[name] for name in sorted(table)}
  paths = find_videos(folder)
  bare = [p for p in paths if not p.with_suffix('.txt').is_file()]
  if bare:
    raise ValueError(
      f'{len(bare)} of {len(paths)} videos have no caption, such as '
      f'{bare[0]}; expected {bare[0].stem}.txt beside it, or '
      f'{" or ".join(TABLES)} in {folder}'
    )
  return {
    p: p.with_suffix('.txt').read_text(encoding='utf-8').strip() for p in paths
  }


def _read_table(folder: pathlib.Path) -> dict[str, str]:
  lines, path = folder / TABLES[0], folder / TABLES[1]
  try:
    if lines.is_file():
      path = lines
      texts = lines.read_text(encoding='utf-8').splitlines()
      rows = [json.loads(text) for text in texts if text.strip()]
    elif path.is_file():
      with path.open(newline='', encoding='utf-8') as f:
        rows = list(csv.DictReader(f))
    else:
      return {}
    return dict(_row(row) for row in rows)
  except (KeyError, TypeError, ValueError) as e:
    raise ValueError(
      f'{path} cannot be read as a table ({type(e).__name__}: {e}); expected '
      'file and caption in every row'
    ) from e


def _row(row: Mapping[str, str]) -> tuple[str, str]:
  return row['file'], row['caption']
