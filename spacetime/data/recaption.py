"""Captions for a folder of videos, by a chat endpoint that sees frames."""

import dataclasses
import pathlib

import numpy as np
import tqdm

from spacetime import SettingError
from spacetime.data import caption_files, chat_endpoint, text_files
from spacetime.media import files, resampling, video_reader

FPS = 4.0  # rate at which videos are read
UNREACHED = 5  # videos in a row without an answer, after which none follows
SYSTEM = (
  'You describe videos for the training of a text-to-video model. The '
  'images are frames of one video in order. Describe in plain sentences what '
  'is seen, how it looks, where it is, how it moves, the background and the '
  'camera; nothing that is not seen. Answer with the description alone.'
)


@dataclasses.dataclass(frozen=True)
class Report:
  """The outcome of captioning a folder.

  Attributes:
    written: number of new captions.
    skipped: number of videos whose captions were there before.
    failed: one line per video without a caption, with the reason.
    pending: number of videos that were not tried, since the endpoint failed
      for several in a row.
  """

  written: int
  skipped: int
  failed: tuple[str, ...]
  pending: int = 0


def caption_folder(
  folder: pathlib.Path,
  endpoint: chat_endpoint.Endpoint,
  *,
  frames: int = 4,
  overwrite: bool = False,
) -> Report:
  """Writes VIDEO.txt beside each VIDEO of a folder.

  Answers that are no complete caption (cut off, filtered, refused, reasoning
  alone) are failures; the captions that exist stay.

  Args:
    folder: searched with its subfolders.
    endpoint: a model that accepts images.
    frames: frames of each video that are sent.
    overwrite: replaces captions that exist.

  Raises:
    SettingError: fewer than one frame.
    ValueError: no folder, no videos in it, or a table of captions, beside
      which texts are not read.
  """
  if frames < 1:
    raise SettingError('frames', frames, '1 or more')
  videos = caption_files.find_videos(folder)
  table = caption_files.find_table(folder)
  if table is not None:
    raise ValueError(
      f'{table} has the captions of {folder}, beside which texts are not read; '
      'remove it or move the videos that it lacks to another folder'
    )
  pending = [path for path in videos if overwrite or not _has_caption(path)]
  failed, texts, unreached, tried = [], set(), 0, 0
  for path in tqdm.tqdm(pending, desc='caption', unit='video'):
    if unreached == UNREACHED:
      break
    tried += 1
    if caption_files.text_path(path) in texts:
      failed.append(f'{path}: its text is that of another video of its name')
      continue
    try:
      images = sample_frames(path, frames=frames)
      text = endpoint.chat(SYSTEM, f'{len(images)} frames.', images)
    except chat_endpoint.EndpointError as e:
      failed.append(f'{path}: {e}')
      unreached = 0 if e.reached else unreached + 1
      continue
    except ValueError as e:
      failed.append(f'{path}: {e}')
      continue
    unreached = 0
    texts.add(caption_files.text_path(path))
    _write_caption(path, text)
  return Report(
    written=tried - len(failed),
    skipped=len(videos) - len(pending),
    failed=tuple(failed),
    pending=len(pending) - tried,
  )


def _write_caption(path: pathlib.Path, text: str) -> None:
  """Writes the text beside a video, on one line."""
  with files.atomic_write(caption_files.text_path(path)) as temporary:
    temporary.write_text(' '.join(text.split()) + '\n', encoding='utf-8')


def _has_caption(path: pathlib.Path) -> bool:
  """Whether there is a text beside a video that is not empty.

  Raises:
    ValueError: the text is in another encoding.
  """
  text = caption_files.text_path(path)
  return text.exists() and not text_files.is_blank(text_files.read(text))


def sample_frames(path: pathlib.Path, *, frames: int) -> list[np.ndarray]:
  """Evenly spaced frames of a video, with the first and the last.

  Raises:
    ValueError: the video cannot be read.
  """
  seconds = video_reader.probe(path).seconds
  count = max(1, resampling.length_at(seconds, fps=FPS))
  indices = np.linspace(0, count - 1, min(frames, count)).round().astype(int)
  return video_reader.read_frames(path, indices, fps=FPS)
