"""Records -> batches, by grain: shuffled, sharded, deterministic, resumable.

A source is any object with `__len__` and `__getitem__` (such as
`tfds.data_source`) whose records are dicts with

  video    uint8 (F, H, W, 3)
  caption  str or bytes

or, of a cache (data/cache.py), latents (f, h, w, c) in place of the video, and
text (S, Y) beside the caption.

The order of the records is one global sequence, fixed by the seed alone. Of
each batch of it, process p of P takes the p-th of P equal runs: the batch of a
step is the same on any number of processes, in the same order, and so is a
place in the data, which is the number of batches taken.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import grain
import numpy as np

from spacetime.data import packing as packing_lib
from spacetime.data.tokenizer import Tokenizer


class Source(Protocol):
  """Records by index."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class _Clip(grain.transforms.RandomMap):
  """Record -> frames_FHWC and tokens_S, with the record's own generator."""

  tokenizer: Tokenizer
  text_length: int
  caption_dropout: float
  size: tuple[int, int, int] | None
  crop: tuple[int, int, int] | None

  def random_map(
    self, record: Mapping[str, Any], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    _check_record(record, size=self.size, crop=self.crop)
    frames_FHWC = np.asarray(record['video'])
    dropped = rng.random() < self.caption_dropout
    caption = '' if dropped else record['caption']
    if isinstance(caption, bytes):
      caption = caption.decode('utf-8')
    if self.crop is not None:
      corner = [
        rng.integers(have - want + 1)
        for have, want in zip(frames_FHWC.shape, self.crop, strict=False)
      ]
      frames_FHWC = frames_FHWC[
        tuple(
          slice(at, at + n) for at, n in zip(corner, self.crop, strict=True)
        )
      ]
    tokens_S = self.tokenizer.encode(caption, length=self.text_length)
    return {'frames': frames_FHWC, 'tokens': tokens_S}


@dataclasses.dataclass(frozen=True)
class _Latents(grain.transforms.RandomMap):
  """Record of a cache -> latents_fhwc and text_SY, or tokens_S."""

  tokenizer: Tokenizer
  text_length: int
  caption_dropout: float
  empty_SY: np.ndarray | None

  def random_map(
    self, record: Mapping[str, Any], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    dropped = rng.random() < self.caption_dropout
    latents_fhwc = record['latents']
    if self.empty_SY is not None:
      text_SY = self.empty_SY if dropped else record['text']
      return {'latents': latents_fhwc, 'text': text_SY}
    caption = '' if dropped else record['caption']
    tokens_S = self.tokenizer.encode(caption, length=self.text_length)
    return {'latents': latents_fhwc, 'tokens': tokens_S}


def _check_record(
  record: Mapping[str, Any],
  *,
  size: tuple[int, int, int] | None,
  crop: tuple[int, int, int] | None,
) -> None:
  missing = [name for name in ('video', 'caption') if name not in record]
  if missing:
    raise ValueError(
      f'record has {sorted(record)}; expected video and caption; change the '
      'source of data.name'
    )
  frames_FHWC = np.asarray(record['video'])
  shape = frames_FHWC.shape
  if frames_FHWC.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
    raise ValueError(
      f'video is {frames_FHWC.dtype} {shape}; expected uint8 (F, H, W, 3); '
      'change the source of data.name'
    )
  if size is not None and shape[:3] != tuple(size):
    raise ValueError(
      f'video has (frames, height, width) {shape[:3]}; expected '
      f'{tuple(size)}; change data.world.frames, data.world.height and '
      'data.world.width'
    )
  if crop is not None and any(
    have < want for have, want in zip(shape, crop, strict=False)
  ):
    raise ValueError(
      f'video has (frames, height, width) {shape[:3]}, smaller than the crop '
      f'{tuple(crop)}; change data.crop'
    )


def make_loader(
  source: Source,
  *,
  tokenizer: Tokenizer,
  text_length: int,
  batch_size: int,
  seed: int,
  caption_dropout: float = 0.1,
  size: tuple[int, int, int] | None = None,
  crop: tuple[int, int, int] | None = None,
  empty_SY: np.ndarray | None = None,
  packing: packing_lib.Rows | packing_lib.Buckets | None = None,
  cut: packing_lib.Cut | None = None,
  process_index: int = 0,
  process_count: int = 1,
  shuffle: bool = True,
  repeat: bool = True,
  threads: int = 4,
  buffer: int = 8,
  workers: int = 0,
) -> grain.IterDataset:
  """Batches of clips and tokens.

  `iter(loader)` has `get_state` and `set_state` and goes into a checkpoint as
  it is. Every epoch is shuffled anew; captions are dropped and crops placed
  by the seed and the place in the sequence, so that a run is repeatable.

  Args:
    source: records by index.
    tokenizer: of the captions.
    text_length: S, tokens per caption with </s>.
    batch_size: clips per batch of this process.
    seed: 0 to 2**32 - 1; the same on all processes.
    caption_dropout: share of captions replaced by '', in [0, 1].
    size: the (frames, height, width) that every clip must have; None for any.
    crop: (frames, height, width) cut out of each clip at a uniform place.
    empty_SY: of records with embedded texts, that of the empty caption; None
      takes captions to tokens.
    packing: how clips of many sizes come together; None has them all of one.
      Rows are packed of each process's own clips.
    cut: to patches, for rows.
    process_index: this process, from 0.
    process_count: processes that share the source.
    shuffle: else the source's order.
    repeat: endless; else one epoch, without the rest that fills no batch.
    threads: that prepare batches; 0 prepares them when asked.
    buffer: batches prepared ahead.
    workers: processes that prepare batches instead, each with `threads`.
      Outside `absl.app.run`, parse absl's flags before iterating.

  Returns:
    An iterable of {'frames': uint8 (B, F, H, W, 3), 'tokens': int32 (B, S)};
    of a cache 'latents' (B, f, h, w, c) in place of 'frames', and where its
    texts are embedded, 'text' (B, S, Y) in place of 'tokens'. Of rows see
    packing.pack.

  Raises:
    ValueError: an argument out of its range, too few records, or a clip of the
      wrong size; the first clip is looked at here, the others as they come.
  """
  _check_arguments(locals())
  first = source[0]
  if 'latents' in first:
    transform = _Latents(tokenizer, text_length, caption_dropout, empty_SY)
  else:
    _check_record(first, size=size, crop=crop)
    transform = _Clip(tokenizer, text_length, caption_dropout, size, crop)
  data = grain.MapDataset.source(source).seed(seed)
  if shuffle:
    data = data.shuffle()
  if repeat:
    data = data.repeat()
  # The generator of a record hangs on its place in the global sequence, so the
  # processes part after it.
  data = data.random_map(transform)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
  if packing is None:
    data = data.batch(batch_size, drop_remainder=True)
  if process_count > 1:
    data = data[process_index::process_count]
  if not repeat:
    # As much on every process, or the last step waits for ever.
    batches = len(source) // (batch_size * process_count)
    data = data[: batches if packing is None else batches * batch_size]
  data = _batches(data, batch_size, options, packing, cut)
  if workers:
    data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  return data


def start(iterator: grain.DatasetIterator) -> None:
  """Starts all the processes that prepare batches, or go on from a place:
  left to themselves each starts when its first batch is waited for, one after
  another."""
  iterator.get_state()  # makes what is to be started
  iterator.start_prefetch()


def _batches(
  data: grain.MapDataset,
  batch_size: int,
  options: grain.ReadOptions,
  packing: packing_lib.Rows | packing_lib.Buckets | None,
  cut: packing_lib.Cut | None,
) -> grain.IterDataset:
  """Batches as they come; where clips are packed, clips -> batches of them."""
  if isinstance(packing, packing_lib.Rows):
    data = data.map(cut).to_iter_dataset(options)
    data = packing_lib.pack(data, packing)
    return data.batch(batch_size, drop_remainder=True)
  if isinstance(packing, packing_lib.Buckets):
    data = data.to_iter_dataset(options)
    return packing_lib.gather(data, packing, batch=batch_size)
  return data.to_iter_dataset(options)


def _check_arguments(given: dict[str, Any]) -> None:
  """Raises ValueError for what `make_loader` cannot serve."""
  for name in ('batch_size', 'process_count', 'text_length'):
    if given[name] < 1:
      raise ValueError(f'{name}={given[name]}: expected at least 1')
  for name in ('threads', 'buffer', 'workers'):
    if given[name] < 0:
      raise ValueError(f'{name}={given[name]}: expected 0 or more')
  if not 0 <= given['seed'] < 2**32:
    raise ValueError(
      f'seed={given["seed"]}: expected 0 to 2**32 - 1; change data.seed'
    )
  if not 0 <= given['caption_dropout'] <= 1:
    raise ValueError(
      f'caption_dropout={given["caption_dropout"]}: expected 0 to 1; change '
      'data.caption_dropout'
    )
  if not 0 <= given['process_index'] < given['process_count']:
    raise ValueError(
      f'process_index={given["process_index"]}: expected 0 to '
      f'process_count - 1 = {given["process_count"] - 1}'
    )
  records, needed = len(given['source']), 1
  if not given['repeat']:
    needed = given['batch_size'] * given['process_count']
  if records < needed:
    raise ValueError(
      f'source has {records} records; expected at least {needed} (batch_size '
      'x process_count, or 1 where it repeats); change data.batch_size'
    )
