"""The clips and the tokenizer of a run: from a config to batches."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from spacetime.data import latent_cache, pipeline, video_folder
from spacetime.data import packing as packing_lib
from spacetime.data.digits import examples, tfds
from spacetime.data.settings import DataConfig

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
    captions: of the training records; of many records, the first; none where
      they are embedded.
    cache: that the records are of, if they are of one.
  """

  train: Any
  held_out: Any
  captions: list[str]
  cache: latent_cache.Cache | None = None


def open_sources(
  data: DataConfig, *, seed: int, embedded: bool = False
) -> Sources:
  """Opens the clips, rendering the digits first where they are not there.

  Args:
    data: section.
    seed: of the digits.
    embedded: whether a cache's embedded texts are wanted, not its captions.

  Raises:
    ValueError: a folder that holds no two clips, or see data/clips.py and
      data/cache.py.
  """
  world = data.world
  if data.name == 'cache':
    return _open_cache(data, embedded)
  if data.name == 'digits' and data.render == 'live':
    parts = [
      examples.LiveExamples(world, split, clips, seed)
      for split, clips in (
        ('train', data.clips),
        ('validation', data.held_out_clips),
      )
    ]
    count = min(CAPTIONS, data.clips)
    return Sources(*parts, [parts[0].caption(i) for i in range(count)])
  if data.name == 'digits':
    path = tfds.prepare(
      data.dir,
      world=world,
      train=data.clips,
      validation=data.held_out_clips,
      compositions=data.held_out_clips,
      seed=seed,
    )
    train = tfds.source(path, 'train')
    captions = [
      _text(train[i]['caption']) for i in range(min(CAPTIONS, len(train)))
    ]
    return Sources(train, tfds.source(path, 'validation'), captions)
  folder = video_folder.ClipFolder(
    data.dir,
    frames=data.frames,
    height=data.height,
    width=data.width,
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


def _open_cache(data: DataConfig, embedded: bool) -> Sources:
  cache = latent_cache.Cache(data.dir)
  train = cache.split('train')
  captions = []
  if not embedded:
    count = min(CAPTIONS, len(train))
    captions = [train.text(i)['caption'] for i in range(count)]
  return Sources(train, cache.split('held_out'), captions, cache)


def check_captions(sources: Sources, tokenizer, *, length: int) -> None:
  """Raises ValueError if a caption has more tokens than the model takes."""
  for caption in sources.captions:
    tokenizer.encode(caption, length=length)


def make_loader(
  data: DataConfig,
  source,
  tokenizer,
  *,
  length: int | None,
  seed: int,
  empty_SY: np.ndarray | None = None,
  share: tuple[int, int] = (0, 1),
  patchify: packing_lib.Patchify | None = None,
):
  """A share of the batches, all of them or part i of n; without text if length
  is None."""
  index, count = share
  return pipeline.make_loader(
    source,
    tokenizer=tokenizer,
    text_length=length or 1,
    batch_size=data.batch_size // count,
    seed=seed,
    caption_dropout=data.caption_dropout if length else 1.0,
    size=None if data.mixed else data.size,
    crop=data.crop,
    empty_SY=empty_SY,
    packing=data.packing,
    patchify=patchify,
    process_index=index,
    process_count=count,
    workers=data.workers,
  )


def held_out_batch(
  source, tokenizer, *, count: int, length: int | None, embedded: bool = False
) -> dict:
  """The first clips of the held-out split, whole and with their captions.

  Args:
    source: of records.
    tokenizer: of captions that are not embedded.
    count: at most so many.
    length: S; None has no text.
    embedded: whether the records' embedded texts are wanted, not tokens.
  """
  records = first(source, count)
  captions = [_text(r['caption']) for r in records]
  batch = {'captions': captions}
  for name, key in (('latents', 'latents'), ('frames', 'video')):
    if key in records[0]:
      batch[name] = np.stack([r[key] for r in records])
  if embedded:
    return batch | {'text': np.stack([r['text'] for r in records])}
  told = captions if length else [''] * len(records)
  tokens = [tokenizer.encode(c, length=length or 1) for c in told]
  return batch | {'tokens': np.stack(tokens)}


def caption(source, index: int) -> str:
  """A record's caption; a file's video is not read for it."""
  if isinstance(source, examples.LiveExamples):
    return source.caption(index)
  if isinstance(source, Part):
    return source.source.clips[source.indices[index]].caption
  return _text(source[index]['caption'])


def identity(data: DataConfig, sources: Sources, *, seed: int) -> str:
  """Names the list of clips that a config opens."""
  told = [repr(dataclasses.replace(data, dir='')), str(seed)]
  if data.mixed is not None:
    told.append(repr(data.mixed))
  if data.world.legs:
    told.append(repr(data.world.legs))
  if data.name == 'folder':
    told = [
      f'{clip.path.name} {clip.path.stat().st_size} 0.0 {clip.caption}'
      for clip in sources.train.source.clips
    ]
  return hashlib.sha256('\n'.join(told).encode()).hexdigest()[:16]


def first(source, count: int) -> list[dict]:
  """The first records of a source."""
  return [source[i] for i in range(min(count, len(source)))]


def _text(caption: str | bytes) -> str:
  return caption.decode() if isinstance(caption, bytes) else caption
