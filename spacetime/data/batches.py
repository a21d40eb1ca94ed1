"""Batches of a run, by the data section of its config."""

from collections.abc import Sequence

import grain
import numpy as np

from spacetime.data import packing, pipeline
from spacetime.data.settings import DataConfig
from spacetime.data.splits import Records
from spacetime.data.tokenizer import Tokenizer


def make_loader(
  data: DataConfig,
  records: Records,
  tokenizer: Tokenizer,
  *,
  length: int | None,
  seed: int,
  empty_SY: np.ndarray | None = None,
  share: tuple[int, int] = (0, 1),
  patchify: packing.Patchify | None = None,
) -> grain.IterDataset:
  """Makes the training batches, or this process's share of them.

  Args:
    data: section of the config.
    records: the training split.
    tokenizer: tokenizer of the captions.
    length: tokens per caption, S; None drops all captions.
    seed: seed of the order, of crops and of dropped captions.
    empty_SY: embedding of the empty caption, if captions are embedded.
    share: (i, n) for part i of n of each batch.
    patchify: splits clips into patches, for packed rows.

  Returns:
    See pipeline.make_loader.
  """
  index, count = share
  return pipeline.make_loader(
    records,
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
  for name, key in (('latents', 'latents'), ('frames', 'video')):
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
  """The first records of a split, at most `count`."""
  return [records[i] for i in range(min(count, len(records)))]


def _decoded(caption: str | bytes) -> str:
  return caption.decode() if isinstance(caption, bytes) else caption
