"""Output files of a request: names, checks before sampling, and writing."""

import dataclasses
import datetime
import json
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jaxlib
import numpy as np
from PIL import Image

from spacetime import SettingError
from spacetime.media import (
  contact_sheet,
  fragmented_mp4,
  video_reader,
  video_writer,
)
from spacetime.media import files as media_files
from spacetime.pipeline import rollout_state
from spacetime.pipeline.request import CLIPS, FILES, Request
from spacetime.pipeline.video import Video

WEIGHTS = 'weights_hash'  # key of every sidecar of this package
SHEET_ROWS = 100  # most videos of a contact sheet
Report = Callable[[pathlib.Path, Mapping[str, Any]], None]

# Settings that name files which are read.
INPUTS = (
  *('image', 'last_image', 'video', 'video2', 'mask'),
  *('prompts_file', 'prompt_embeds', 'lora', 'lora_2', *FILES),
)


@dataclasses.dataclass(frozen=True)
class Targets:
  """The files of a request.

  Attributes:
    videos: path of each video for writer.write_video; a final slash means a
      folder.
    sheet: the contact sheet of several videos, or None.
    parts: the growing file of each long video.
    state: the state of long videos beside them; None otherwise.
  """

  videos: tuple[str, ...]
  sheet: pathlib.Path | None
  parts: tuple[pathlib.Path, ...] = ()
  state: pathlib.Path | None = None

  def files(self, *, frames: int) -> list[pathlib.Path]:
    """All paths to write: videos, folders of frames, sidecars, sheet."""
    paths = [path for path in (self.sheet, self.state) if path]
    paths += self.parts
    for video in self.videos:
      paths += [
        video_writer.output_path(video, frames=frames),
        video_writer.sidecar_path(video),
      ]
    return paths


def targets(request: Request, *, clips: int) -> Targets:
  """The files of `out`; several videos are numbered and get a sheet.

  Raises:
    SettingError: no path.
    ValueError: a path that cannot be written.
  """
  out = request.out
  if not out:
    raise SettingError('out', out, 'a file to write, such as video.mp4')
  if clips > CLIPS:
    raise SettingError('num', request.num, f'at most {CLIPS:,} videos in all')
  path = video_writer.check_output(out)
  videos, sheet = (out,), None
  if clips > 1:
    end = '/' if out.endswith('/') else ''
    videos = tuple(
      f'{path.with_name(f"{path.stem}-{i:03d}{path.suffix}")}{end}'
      for i in range(clips)
    )
    sheet = path.with_name(f'{path.stem}-sheet.png')
  if request.seconds is None:
    return Targets(videos, sheet)
  if path.suffix.lower() != fragmented_mp4.SUFFIX:
    raise SettingError(
      'out',
      out,
      f'FILE{fragmented_mp4.SUFFIX}, since a video of `seconds` is written '
      'chunk by chunk',
    )
  files = [media_files.with_home(video) for video in videos]
  parts = (file.with_name(f'{file.stem}.part.mp4') for file in files)
  state = path.with_name(f'{path.stem}.part.safetensors')
  return Targets(videos, None, tuple(parts), state)


def check(targets: Targets, request: Request, *, frames: int) -> None:
  """Refuses targets that could not be written after sampling.

  Neither a folder of the same name is replaced, nor a folder of frames that
  holds other files; see finished for files.

  Args:
    targets: the output files.
    request: request with input files, which must not be overwritten.
    frames: number of frames of each clip.

  Raises:
    SettingError: it names the path.
  """
  for video in targets.videos:
    video_writer.check_output(video)
  files = targets.files(frames=frames)
  folders = [
    video_writer.output_path(video, frames=frames)
    for video in targets.videos
    if video_writer.writes_folder(video, frames=frames)
  ]
  for path in files:
    if path in folders:
      video_writer.check_folder(path)
    elif path.is_dir():
      raise SettingError('out', request.out, f'a file, but {path} is a folder')
  for name in INPUTS:
    value = getattr(request, name)
    if not isinstance(value, (str, pathlib.Path)):
      continue
    if media_files.is_url(value):
      continue
    source = media_files.with_home(value).resolve()
    if any(source == path.resolve() for path in files):
      raise SettingError(
        'out', request.out, f'another file than {source}, which `{name}` reads'
      )


def finished(
  targets: Targets,
  request: Request,
  identities: Sequence[Mapping[str, Any]],
  *,
  frames: int,
) -> dict[int, Mapping[str, Any]]:
  """Metadata of the videos that the same request has written, by number.

  Args:
    targets: the output files.
    request: request with `out` and `overwrite`.
    identities: identity of each video.
    frames: number of frames of each video.

  Raises:
    SettingError: a file of another request is there, which only `overwrite`
      replaces.
  """
  if request.overwrite:
    return {}
  result = {}
  for i, (video, identity) in enumerate(
    zip(targets.videos, identities, strict=True)
  ):
    path = video_writer.output_path(video, frames=frames)
    sidecar = video_writer.sidecar_path(video)
    metadata = _read_sidecar(sidecar)
    exists = path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if not exists and (metadata or not sidecar.exists()):
      continue
    difference = _difference(metadata, identity)
    if difference:
      raise SettingError(
        'out',
        request.out,
        f'a new file, but {path if exists else sidecar} is there',
        hint=f'change `out`, or set `overwrite` to replace it; {difference}',
      )
    result[i] = metadata
  sheet = targets.sheet
  if sheet and sheet.exists() and not result:
    raise SettingError(
      'out',
      request.out,
      f'a new file, but {sheet} is there',
      hint='change `out`, or set `overwrite` to replace it',
    )
  return result


def _read_sidecar(path: pathlib.Path) -> Mapping[str, Any]:
  """The metadata of a video; empty if there is no sidecar of this package."""
  try:
    values = json.loads(path.read_text('utf-8'))
  except (OSError, ValueError, RecursionError):
    return {}
  return values if isinstance(values, dict) and WEIGHTS in values else {}


def _difference(metadata: Mapping, identity: Mapping) -> str:
  """The first value in which a sidecar differs; empty if there is none."""
  if not metadata:
    return 'no sidecar says how it was generated'
  identity = json.loads(json.dumps(identity))
  other = {name: metadata.get(name) for name in identity}
  differences = rollout_state.differences(other, identity)
  return differences[0] if differences else ''


def provenance(command: str | None) -> dict[str, Any]:
  """When, where and by what a video is generated, for sidecars.

  Args:
    command: the command line; None in Python.
  """
  device = jax.devices()[0]
  return {
    'command': command,
    'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
    'device': f'{device.platform}: {device.device_kind}',
    'versions': {
      'python': platform.python_version(),
      'jax': jax.__version__,
      'jaxlib': jaxlib.__version__,
      'numpy': np.__version__,
    },
  }


class Writer:
  """Writes videos as they are finished, and a contact sheet of several.

  Attributes:
    written: metadata of each file, by its path.

  Args:
    targets: the output files.
    report: called with (path, metadata) of each file.
  """

  def __init__(self, targets: Targets, report: Report | None = None):
    self._targets, self._report = targets, report
    self._frames: dict[int, np.ndarray] = {}
    self.written: dict[pathlib.Path, Mapping[str, Any]] = {}

  def write(self, number: int, video: Video) -> None:
    """Writes a video with its sidecar."""
    self.add(video.save(self._targets.videos[number]), video.metadata)
    if self._targets.sheet and number < SHEET_ROWS:
      self._frames[number] = contact_sheet.shown(video.frames)

  def keep(self, number: int, metadata: Mapping[str, Any], frames: int) -> None:
    """Adds a video that was written before."""
    path = video_writer.output_path(self._targets.videos[number], frames=frames)
    self.add(path, metadata | {'kept': True})
    if self._targets.sheet and number < SHEET_ROWS:
      self._frames[number] = contact_sheet.shown(_read_frames(path))

  def close(self) -> None:
    """Writes the sheet of the first videos."""
    if not self._targets.sheet:
      return
    numbers = sorted(self._frames)
    metadata = [*self.written.values()]
    prompts = {m['number']: m['prompt'] for m in metadata}
    sheet = contact_sheet.write(
      self._targets.sheet,
      [self._frames[number] for number in numbers],
      [prompts[number] for number in numbers],
    )
    self.add(sheet, {'prompt': 'contact sheet'})

  def add(self, path: pathlib.Path, metadata: Mapping[str, Any]) -> None:
    """Reports a file that is written."""
    self.written[path] = metadata
    if self._report:
      self._report(path, metadata)


def _read_frames(path: pathlib.Path) -> np.ndarray:
  """Frames of a written video or folder, uint8 (F, H, W, 3)."""
  files = sorted(path.glob('*.png')) if path.is_dir() else [path]
  if files[0].suffix.lower() != '.png':
    return video_reader.read_video(path)
  return np.stack([np.asarray(Image.open(file)) for file in files])
