"""Batches of a run, by the data section of its config."""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import grain
import numpy as np
from absl import logging

from spacetime.data import (
  geometry,
  latent_cache,
  packing,
  pipeline,
  stage_batches,
  stages,
  unreadable,
)
from spacetime.data.settings import DataConfig
from spacetime.data.splits import Records
from spacetime.data.tokenizer import Tokenizer


class Share(Protocol):
  """A process's part of each batch: number `index` of `count`, see
  sharding.DataShare."""

  index: int
  count: int

  def rows(self, batch_size: int) -> np.ndarray:
    """The rows of a batch over all processes that this one reads."""


def make_loader(
  data: DataConfig,
  records: Records,
  tokenizer: Tokenizer,
  *,
  length: int | None,
  seed: int,
  empty_SY: np.ndarray | None = None,
  share: Share | None = None,
  patchify: packing.Patchify | None = None,
  grid: Callable[..., geometry.Geometry] | None = None,
) -> grain.IterDataset:
  """Makes the training batches, or this process's share of them.

  Args:
    data: section of the config.
    records: the training split.
    tokenizer: tokenizer of the captions.
    length: tokens per caption, S; None drops all captions.
    seed: seed of the order, of crops and of dropped captions.
    empty_SY: embedding of the empty caption, if captions are embedded.
    share: part of each batch that this process reads; None reads all.
    patchify: splits clips into patches, for packed rows.
    grid: (frames, height, width) -> Geometry, for stages and for buckets with
      a budget of tokens.

  Returns:
    See pipeline.make_loader.
  """
  index, count = (share.index, share.count) if share else (0, 1)
  make = functools.partial(
    pipeline.make_loader,
    tokenizer=tokenizer,
    text_length=length or 1,
    batch_size=data.batch_size // count,
    caption_dropout=data.caption_dropout if length else 1.0,
    crop=data.crop,
    empty_SY=empty_SY,
    packing=data.packing,
    patchify=patchify,
    process_index=index,
    process_count=count,
    rows=share.rows(data.batch_size) if share else None,
    workers=data.workers,
  )
  if not data.stages:
    return make(
      unreadable.Replaced(records) if data.source.HAS_FILES else records,
      seed=seed,
      size=None if data.mixed else data.size,
      clip_size=records.clip_size if data.mixed else None,
      batch=_budget(data, grid, count, 0),
    )
  read, parts = data.source.stage_reader(data, records), []
  for number, stage in enumerate(data.stages):
    chances = stage.chances(functools.partial(_tokens, grid))
    drawn = stages.StageSource(
      stage, number, tuple(chances.tolist()), read, seed
    )
    parts.append(
      make(
        drawn,
        # Captions are dropped by the seed and the place in the stage.
        seed=(seed + 7919 * number) % 2**32,
        size=None,
        clip_size=drawn.clip_size,
        shuffle=False,
        batch=_budget(data, grid, count, stage.tokens),
      )
    )
  return stage_batches.chain(parts, [stage.steps for stage in data.stages])


def _tokens(grid, size: tuple[int, int, int]) -> int:
  return grid(*size).tokens


def _budget(data: DataConfig, grid, count: int, tokens: int):
  """(frames, height, width) -> clips of a batch of this process, where buckets
  have a budget of tokens; else None."""
  if not isinstance(data.packing, packing.Buckets):
    return None
  tokens = tokens or data.packing.tokens
  if not tokens:
    return None
  return functools.partial(_clips_within, grid, tokens, data.batch_size, count)


def _clips_within(grid, tokens: int, multiple: int, count: int, size) -> int:
  clips = max(tokens // (_tokens(grid, size) * multiple), 1) * multiple
  return clips // count


def largest_batch(
  data: DataConfig, grid: Callable[..., geometry.Geometry]
) -> tuple[tuple[int, int, int], int]:
  """(frames, height, width) and number of the clips of the training batch with
  the most tokens, over all processes, where a batch has clips of one size.

  Args:
    data: section of the config.
    grid: (frames, height, width) -> Geometry.
  """
  if data.stages:
    sizes = [
      (shape, stage.tokens)
      for stage in data.stages
      for kind in stage.mix
      for shape in kind.shapes
    ]
  elif data.mixed:
    sizes = [(shape, 0) for shape in data.mixed.shapes]
  else:
    sizes = [(tuple(data.crop or data.size), 0)]
  batches = []
  for shape, tokens in sizes:
    budget = _budget(data, grid, 1, tokens)
    batches.append((shape, budget(shape) if budget else data.batch_size))

  def tokens_of(batch):
    tokens = _tokens(grid, batch[0])
    return batch[1] * tokens, tokens

  return max(batches, key=tokens_of)


def held_out_batch(
  records: Records,
  tokenizer: Tokenizer,
  *,
  count: int,
  length: int | None,
  embedded: bool = False,
) -> dict:
  """The first held-out clips, uncropped and with their captions.

  Args:
    records: the held-out split.
    tokenizer: tokenizer of captions that are not embedded.
    count: most clips.
    length: tokens per caption, S; None drops all captions.
    embedded: whether to return the embedded texts instead of tokens.
  """
  clips = first(records, count)
  captions = [_decoded(clip['caption']) for clip in clips]
  batch = {'captions': captions}
  if 'scene' in clips[0]:
    batch['scenes'] = [_decoded(clip['scene']) for clip in clips]
  names = ('latents', *latent_cache.CONDITIONS)
  for name, key in (*zip(names, names, strict=True), ('frames', 'video')):
    if key in clips[0]:
      batch[name] = np.stack([clip[key] for clip in clips])
  if embedded:
    return batch | {'text': np.stack([clip['text'] for clip in clips])}
  texts = captions if length else [''] * len(clips)
  tokens = [tokenizer.encode(text, length=length or 1) for text in texts]
  return batch | {'tokens': np.stack(tokens)}


def check_captions(
  captions: Sequence[str], tokenizer: Tokenizer, *, length: int
) -> None:
  """Raises ValueError if a caption has more tokens than the model takes."""
  for caption in captions:
    tokenizer.encode(caption, length=length)


def first(records: Records, count: int) -> list[dict]:
  """The first records of a split that can be read, at most `count`.

  Raises:
    ValueError: none can be read.
  """
  readable, error = [], None
  for index in range(len(records)):
    if len(readable) == count:
      break
    try:
      readable.append(records[index])
    except unreadable.UnreadableClipError as e:
      error = e
      logging.warning('%s: skipped', e)
  if not readable and error is not None:
    raise ValueError(
      f'{error}; none of {len(records)} clips can be read'
    ) from error
  return readable


def _decoded(caption: str | bytes) -> str:
  return caption.decode() if isinstance(caption, bytes) else caption
