"""Output files of a request: names, checks before sampling, and writing."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from spacetime import SettingError
from spacetime.media import contact_sheet, fragmented_mp4, video_writer
from spacetime.pipeline.request import FILES, Request
from spacetime.pipeline.video import Video

# Settings that name files which are read.
INPUTS = (
  *('image', 'video', 'video2', 'mask'),
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
  files = [pathlib.Path(video).expanduser() for video in videos]
  parts = (file.with_name(f'{file.stem}.part.mp4') for file in files)
  state = path.with_name(f'{path.stem}.part.safetensors')
  return Targets(videos, None, tuple(parts), state)


def check(targets: Targets, request: Request, *, frames: int) -> None:
  """Refuses targets that could not be written after sampling.

  A file of an earlier run is replaced, but not a folder of the same name, nor a
  folder of frames that holds other files.

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
    source = pathlib.Path(value).expanduser().resolve()
    if any(source == path.resolve() for path in files):
      raise SettingError(
        'out', request.out, f'another file than {source}, which `{name}` reads'
      )


def write(
  targets: Targets, videos: Sequence[Video]
) -> dict[pathlib.Path, Mapping]:
  """Writes videos with their sidecars, and a contact sheet of several.

  Returns:
    the metadata of each file written.
  """
  written = {}
  for path, video in zip(targets.videos, videos, strict=True):
    written[video.save(path)] = video.metadata
  if targets.sheet:
    prompts = [video.metadata['prompt'] for video in videos]
    sheet = contact_sheet.write(
      targets.sheet, [video.frames for video in videos], prompts
    )
    written[sheet] = {'prompt': 'contact sheet'}
  return written
