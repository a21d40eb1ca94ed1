"""Captions for a folder of videos, by a chat endpoint that sees frames."""

import dataclasses
import pathlib

import numpy as np
import tqdm

from spacetime import SettingError
from spacetime.data import chat_endpoint, video_folder
from spacetime.media import files, video_reader

FPS = 4.0  # rate at which videos are read
SYSTEM = (
  'You describe videos for the training of a text-to-video model. You are '
  'given frames of one video in their order. Describe in plain sentences what '
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
  """

  written: int
  skipped: int
  failed: tuple[str, ...]


def caption_folder(
  folder: pathlib.Path,
  endpoint: chat_endpoint.Endpoint,
  *,
  frames: int = 4,
  overwrite: bool = False,
) -> Report:
  """Writes VIDEO.txt beside each VIDEO of a folder.

  Args:
    folder: searched with its subfolders.
    endpoint: a model that accepts images.
    frames: frames of each video that are sent.
    overwrite: replaces captions that exist.

  Raises:
    SettingError: fewer than one frame.
    ValueError: no folder, or no videos in it.
  """
  if frames < 1:
    raise SettingError('frames', frames, '1 or more')
  videos = video_folder.find_videos(folder)
  pending = [
    path
    for path in videos
    if overwrite or not path.with_suffix('.txt').exists()
  ]
  failed = []
  for path in tqdm.tqdm(pending, desc='caption', unit='video'):
    try:
      images = sample_frames(path, frames=frames)
      text = endpoint.chat(SYSTEM, f'{len(images)} frames.', images)
    except (chat_endpoint.EndpointError, ValueError) as e:
      failed.append(f'{path}: {e}')
      continue
    with files.atomic_write(path.with_suffix('.txt')) as temporary:
      temporary.write_text(' '.join(text.split()) + '\n', encoding='utf-8')
  return Report(
    written=len(pending) - len(failed),
    skipped=len(videos) - len(pending),
    failed=tuple(failed),
  )


def sample_frames(path: pathlib.Path, *, frames: int) -> list[np.ndarray]:
  """Evenly spaced frames of a video, with the first and the last.

  Raises:
    ValueError: the video cannot be read.
  """
  video_FHWC = video_reader.read_video(path, fps=FPS)
  indices = np.linspace(0, len(video_FHWC) - 1, min(frames, len(video_FHWC)))
  return [video_FHWC[round(index)] for index in indices]
