"""Source 'folder': your own video files, with their captions."""

import dataclasses
import hashlib
from collections.abc import Callable

from spacetime.data import clip_list, unreadable, video_folder
from spacetime.data.clip_list import ClipList
from spacetime.data.settings import DataConfig
from spacetime.data.splits import Splits, Subset
from spacetime.media import files

HAS_LATENTS = False
HAS_MIXED_SIZES = False
HAS_FILES = True
HELD_OUT = 20  # every twentieth clip is held out


def open_splits(
  data: DataConfig,
  *,
  seed: int,
  embedded: bool = False,
  recorded: ClipList | None = None,
) -> Splits:
  """Opens the clips of a folder and holds some of them out.

  With a recorded list, clips have the indices that they have there: those that
  are gone are clips that cannot be read, and new ones are left out.
  """
  del seed, embedded  # nothing is drawn, and captions are text
  folder = video_folder.ClipFolder(
    data.dir,
    # Every stage reads from the same files.
    frames=max(data.frames, data.max_frames),
    height=data.height,
    width=data.width,
    fps=data.fps,
    names=recorded and recorded.names,
    max_unreadable=data.max_unreadable,
  )
  count = len(folder)
  if count < 2:
    raise ValueError(
      f'{data.dir} holds {count} clip: expected two or more, one of which is '
      'held out'
    )
  every = min(HELD_OUT, count)
  held_out = range(every - 1, count, every)
  train = Subset(folder, [i for i in range(count) if i not in held_out])
  captions = [
    train.caption(i)
    for i, index in enumerate(train.indices)
    if index not in folder.errors
  ]
  identity = _identity(folder)
  return Splits(
    train,
    Subset(folder, held_out),
    captions,
    identity,
    clips=clip_list.make(
      {
        name: clip_list.fingerprint(files.size(clip.path), clip.caption)
        for name, clip in folder.files.items()
      },
      identity,
    ),
  )


def _identity(folder: video_folder.ClipFolder) -> str:
  """Fingerprint of names, sizes and captions of the files."""
  lines = [
    f'{clip.path.name} {files.size(clip.path)} 0.0 {clip.caption}'
    for clip in folder.files.values()
  ]
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]


def stage_reader(data: DataConfig, records: Subset) -> Callable:
  """Draws clips of training stages: training files at the stages' sizes."""
  del data
  return _StageReader(records)


@dataclasses.dataclass(frozen=True)
class _StageReader:
  records: Subset

  def __call__(self, rng, kind, shape: tuple[int, int, int]) -> dict:
    indices = self.records.indices

    def clip(index: int) -> dict:
      return self.records.records.read(
        indices[index], frames=shape[0], height=shape[1], width=shape[2]
      )

    return unreadable.read(clip, int(rng.integers(len(indices))), len(indices))


def prompt_grammar(data: DataConfig) -> None:
  """None: captions of a folder have no grammar."""


def prompt_vocabulary(data: DataConfig) -> None:
  """None: captions of a folder may have any words."""
