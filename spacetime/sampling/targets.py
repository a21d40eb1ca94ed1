"""The files that a run of sampling writes, known and checked before it runs."""

import dataclasses
import pathlib
from collections.abc import Mapping

from spacetime.sampling import writer


@dataclasses.dataclass(frozen=True)
class Targets:
  """What is written.

  Attributes:
    videos: the path of each clip, as writer.write_video takes it; a final
      slash tells a folder.
    sheet: of several clips, or None.
  """

  videos: tuple[str, ...]
  sheet: pathlib.Path | None

  def files(self, *, frames: int) -> list[pathlib.Path]:
    """Every path that appears: videos, folders of frames, sidecars, sheet."""
    found = [] if self.sheet is None else [self.sheet]
    for video in self.videos:
      found += [writer.place(video, frames=frames), writer.sidecar(video)]
    return found


def name(out: str, *, clips: int) -> Targets:
  """The targets of --out: one as it is, several numbered, with a sheet.

  Raises:
    ValueError: --out cannot be written; see writer.check_output.
  """
  path = writer.check_output(out)
  if clips == 1:
    return Targets((out,), None)
  end = '/' if out.endswith('/') else ''
  videos = tuple(
    f'{path.with_name(f"{path.stem}-{i:03d}{path.suffix}")}{end}'
    for i in range(clips)
  )
  return Targets(videos, path.with_name(f'{path.stem}-sheet.png'))


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
    writer.check_output(video)
  files = targets.files(frames=frames)
  folders = [
    writer.place(video, frames=frames)
    for video in targets.videos
    if writer.in_folder(video, frames=frames)
  ]
  for path in files:
    if path in folders:
      writer.check_folder(path)
    elif path.is_dir():
      raise ValueError(f'{path} is a folder; expected a file; change --out')
  for flag, given in inputs.items():
    read = given and pathlib.Path(given).expanduser().resolve()
    if read and any(read == path.resolve() for path in files):
      raise ValueError(
        f'--out would write over {read}, which {flag} reads; change --out'
      )
