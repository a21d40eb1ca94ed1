"""The clips and the tokenizer of a run: from a config to batches."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from spacetime.config import DataConfig
from spacetime.data import clips as folder_lib
from spacetime.data import digits_tfds, pipeline

CAPTIONS = 5000  # enough to learn the pieces of the digits world's grammar
VOCABULARY = 512  # of the tokenizer where the config has no text
HELD_OUT = 20  # of a folder every twentieth clip is held out


@dataclasses.dataclass(frozen=True)
class Part:
  """Some records of a source."""

  source: Any
  indices: Sequence[int]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int):
    return self.source[self.indices[index]]


@dataclasses.dataclass(frozen=True)
class Sources:
  """Records by split; see data/pipeline.py for what a record is.

  Attributes:
    train: to learn from.
    held_out: to measure with.
    captions: of the training records; of many records, the first.
  """

  train: Any
  held_out: Any
  captions: list[str]


def open_sources(data: DataConfig, *, seed: int) -> Sources:
  """Opens the clips, rendering the digits first where they are not there.

  Raises:
    ValueError: a folder that holds no two clips, or see data/clips.py.
  """
  world = data.world
  if data.name == 'digits':
    path = digits_tfds.prepare(
      data.dir,
      world=world,
      train=data.clips,
      validation=data.held_out_clips,
      compositions=data.held_out_clips,
      seed=seed,
    )
    train = digits_tfds.source(path, 'train')
    captions = [
      _text(train[i]['caption']) for i in range(min(CAPTIONS, len(train)))
    ]
    return Sources(train, digits_tfds.source(path, 'validation'), captions)
  folder = folder_lib.ClipFolder(
    data.dir,
    frames=world.frames,
    height=world.height,
    width=world.width,
    fps=data.fps,
  )
  count = len(folder)
  if count < 2:
    raise ValueError(
      f'{data.dir} holds {count} clip: expected two or more, one of which is '
      'held out; change data.dir'
    )
  every = min(HELD_OUT, count)
  held_out = range(every - 1, count, every)
  train = [i for i in range(count) if i not in held_out]
  captions = [folder.clips[i].caption for i in train]
  return Sources(Part(folder, train), Part(folder, held_out), captions)


def check_captions(sources: Sources, tokenizer, *, length: int) -> None:
  """Raises ValueError if a caption has more tokens than the model takes."""
  for caption in sources.captions:
    tokenizer.encode(caption, length=length)


def make_loader(
  data: DataConfig, source, tokenizer, *, length: int | None, seed: int
):
  """This process's share of the batches; without text if length is None."""
  world, processes = data.world, jax.process_count()
  return pipeline.make_loader(
    source,
    tokenizer=tokenizer,
    text_length=length or 1,
    batch_size=data.batch_size // processes,
    seed=seed,
    caption_dropout=data.caption_dropout if length else 1.0,
    size=(world.frames, world.height, world.width),
    crop=data.crop,
    process_index=jax.process_index(),
    process_count=processes,
  )


def held_out_batch(
  source, tokenizer, *, count: int, length: int | None
) -> dict:
  """The first clips of the held-out split, whole and with their captions."""
  records = [source[i] for i in range(min(count, len(source)))]
  captions = [_text(r['caption']) for r in records]
  told = captions if length else [''] * len(records)
  tokens = [tokenizer.encode(c, length=length or 1) for c in told]
  return {
    'frames': np.stack([r['video'] for r in records]),
    'tokens': np.stack(tokens),
    'captions': captions,
  }


def first(source, count: int) -> np.ndarray:
  """The first clips of a source, uint8 (B, F, H, W, 3)."""
  return np.stack([source[i]['video'] for i in range(min(count, len(source)))])


def _text(caption: str | bytes) -> str:
  return caption.decode() if isinstance(caption, bytes) else caption
