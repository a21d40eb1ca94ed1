"""The files that a run of sampling writes, known and checked before it runs."""

import dataclasses
import pathlib
from collections.abc import Mapping

from spacetime.media import fragmented_mp4, video_writer


@dataclasses.dataclass(frozen=True)
class Targets:
  """What is written.

  Attributes:
    videos: the path of each clip, as writer.write_video takes it; a final
      slash tells a folder.
    sheet: of several clips, or None.
    parts: of each video while it is made, where that is in chunks.
    state: of such a run, beside them; None otherwise.
  """

  videos: tuple[str, ...]
  sheet: pathlib.Path | None
  parts: tuple[pathlib.Path, ...] = ()
  state: pathlib.Path | None = None

  def files(self, *, frames: int) -> list[pathlib.Path]:
    """Every path that appears: videos, folders of frames, sidecars, sheet."""
    found = [path for path in (self.sheet, self.state) if path]
    found += self.parts
    for video in self.videos:
      found += [
        video_writer.output_path(video, frames=frames),
        video_writer.sidecar_path(video),
      ]
    return found


def name(out: str, *, clips: int) -> Targets:
  """The targets of --out: one as it is, several numbered, with a sheet.

  Raises:
    ValueError: --out cannot be written; see writer.check_output.
  """
  path = video_writer.check_output(out)
  if clips == 1:
    return Targets((out,), None)
  end = '/' if out.endswith('/') else ''
  videos = tuple(
    f'{path.with_name(f"{path.stem}-{i:03d}{path.suffix}")}{end}'
    for i in range(clips)
  )
  return Targets(videos, path.with_name(f'{path.stem}-sheet.png'))


def streamed(targets: Targets, out: str) -> Targets:
  """The targets of videos that are written as they are made: FILE.part.mp4
  and FILE.part.safetensors beside FILE.mp4, until it is whole; no sheet.

  Raises:
    ValueError: --out is no MP4.
  """
  path = video_writer.check_output(out)
  if path.suffix.lower() != fragmented_mp4.SUFFIX:
    raise ValueError(
      f'--out={out}: a video of --seconds is written as it is made: expected '
      f'FILE{fragmented_mp4.SUFFIX}'
    )
  videos = [pathlib.Path(video).expanduser() for video in targets.videos]
  parts = (video.with_name(f'{video.stem}.part.mp4') for video in videos)
  state = path.with_name(f'{path.stem}.part.safetensors')
  return Targets(targets.videos, None, tuple(parts), state)


def check(
  targets: Targets, *, frames: int, inputs: Mapping[str, str | None]
) -> None:
  """Refuses targets that could not be written when the time has come.

  A file of a former run is replaced; a folder in its place, or one of frames
  that holds anything else, is not.

  Args:
    targets: all of them.
    frames: of each clip.
    inputs: files that are read, by the flag that names them.

  Raises:
    ValueError: it names the path and the flag to change.
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
      raise ValueError(f'{path} is a folder; expected a file; change --out')
  for flag, given in inputs.items():
    read = given and pathlib.Path(given).expanduser().resolve()
    if read and any(read == path.resolve() for path in files):
      raise ValueError(
        f'--out would write over {read}, which {flag} reads; change --out'
      )
