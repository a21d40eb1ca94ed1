"""Captions of a folder of videos, asked of a chat endpoint."""

import dataclasses
import pathlib

import numpy as np
import tqdm

from spacetime.data import chat_endpoint, video_folder
from spacetime.media import files, video_reader

RATE = 4.0  # frames a second that are looked at
SYSTEM = (
  'You describe videos for the training of a text-to-video model. You are '
  'given frames of one video in their order. Describe in plain sentences what '
  'is seen, how it looks, where it is, how it moves, the background and the '
  'camera; nothing that is not seen. Answer with the description alone.'
)


@dataclasses.dataclass(frozen=True)
class Counts:
  """What became of the videos.

  Attributes:
    written: captions that are new.
    kept: captions that were there.
    failed: a line for each video that has got none, and why.
  """

  written: int
  kept: int
  failed: tuple[str, ...]


def write_all(
  folder: pathlib.Path,
  endpoint: chat_endpoint.Endpoint,
  *,
  frames: int,
  overwrite: bool,
) -> Counts:
  """Writes VIDEO.txt beside each VIDEO of a folder.

  Args:
    folder: searched with its subfolders.
    endpoint: sees the frames.
    frames: of each video that are sent.
    overwrite: whether captions that are there are replaced.

  Raises:
    ValueError: no folder, or no videos in it.
  """
  paths = video_folder.find_videos(folder)
  wanted = [p for p in paths if overwrite or not p.with_suffix('.txt').exists()]
  failed = []
  for path in tqdm.tqdm(wanted, desc='caption', unit='video'):
    try:
      images = seen(path, frames=frames)
      text = endpoint.ask(SYSTEM, f'{len(images)} frames.', images)
    except (chat_endpoint.Unanswered, ValueError) as e:
      failed.append(f'{path}: {e}')
      continue
    with files.atomic_write(path.with_suffix('.txt')) as temporary:
      temporary.write_text(' '.join(text.split()) + '\n', encoding='utf-8')
  return Counts(
    len(wanted) - len(failed), len(paths) - len(wanted), tuple(failed)
  )


def seen(path: pathlib.Path, *, frames: int) -> list[np.ndarray]:
  """Frames of a video, evenly spaced, the first and the last among them.

  Raises:
    ValueError: it cannot be read.
  """
  height, width = video_reader.video_size(path)
  video_FHWC = video_reader.read_video(
    path, frames=None, height=height, width=width, fps=RATE
  )
  places = np.linspace(0, len(video_FHWC) - 1, min(frames, len(video_FHWC)))
  return [video_FHWC[round(place)] for place in places]
