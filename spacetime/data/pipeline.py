"""Records -> batches, by grain: shuffled, sharded, deterministic, resumable.

A record is a dict of

  video    uint8 (F, H, W, 3)
  caption  str or bytes

or, in a cache (data/latent_cache.py), latents (f, h, w, c) instead of the video
and text (S, Y) beside the caption.

The order of the records is one global sequence, fixed by the seed alone. A
process takes those rows of each global batch that its devices hold: the batch
of a step is the same, in the same order, on any number of processes and in any
order of devices, and so is the position in the data, the number of batches
taken. Only where clips are packed or gathered by size does each process make
rows of its own share of the sequence.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from spacetime import SettingError
from spacetime.data import latent_cache, unreadable
from spacetime.data import packing as packing_lib
from spacetime.data.tokenizer import Tokenizer

# Keys of a stage's records, for the loss (data/stages.py), and of a record that
# replaces another (data/unreadable.py).
PASSED = ('shift', 'cond', unreadable.KEY)


class Records(Protocol):
  """Random access to records."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class _Clip(grain.transforms.RandomMap):
  """Record -> frames_FHWC and tokens_S; crops and drops captions at random."""

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
        rng.integers(size - crop + 1)
        for size, crop in zip(frames_FHWC.shape, self.crop, strict=False)
      ]
      frames_FHWC = frames_FHWC[
        tuple(
          slice(start, start + crop)
          for start, crop in zip(corner, self.crop, strict=True)
        )
      ]
    tokens_S = self.tokenizer.encode(caption, length=self.text_length)
    passed = {name: record[name] for name in PASSED if name in record}
    return {'frames': frames_FHWC, 'tokens': tokens_S} | passed


@dataclasses.dataclass(frozen=True)
class _Latents(grain.transforms.RandomMap):
  """Record of a cache -> latents_fhwc, and text_SY or tokens_S."""

  tokenizer: Tokenizer
  text_length: int
  caption_dropout: float
  empty_SY: np.ndarray | None

  def random_map(
    self, record: Mapping[str, Any], rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    dropped = rng.random() < self.caption_dropout
    names = ('latents', *latent_cache.CONDITIONS)
    arrays = {name: record[name] for name in names if name in record}
    if self.empty_SY is not None:
      text_SY = self.empty_SY if dropped else record['text']
      return arrays | {'text': text_SY}
    caption = '' if dropped else record['caption']
    tokens_S = self.tokenizer.encode(caption, length=self.text_length)
    return arrays | {'tokens': tokens_S}


def _check_record(
  record: Mapping[str, Any],
  *,
  size: tuple[int, int, int] | None,
  crop: tuple[int, int, int] | None,
) -> None:
  if not {'video', 'caption'} <= record.keys():
    raise ValueError(f'record has {sorted(record)}; expected video and caption')
  frames_FHWC = np.asarray(record['video'])
  shape = frames_FHWC.shape
  if frames_FHWC.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
    raise ValueError(
      f'video is {frames_FHWC.dtype} {shape}; expected uint8 (F, H, W, 3)'
    )
  if size is not None and shape[:3] != tuple(size):
    raise ValueError(
      f'video has (frames, height, width) {shape[:3]}; expected {tuple(size)}'
    )
  if crop is not None and any(
    size < least for size, least in zip(shape, crop, strict=False)
  ):
    raise SettingError(
      'data.crop', tuple(crop), f'at most the size of the clips, {shape[:3]}'
    )


def make_loader(
  source: Records,
  *,
  tokenizer: Tokenizer,
  text_length: int,
  batch_size: int,
  seed: int,
  caption_dropout: float = 0.1,
  size: tuple[int, int, int] | None = None,
  crop: tuple[int, int, int] | None = None,
  empty_SY: np.ndarray | None = None,
  packing: packing_lib.SequencePacking | packing_lib.Buckets | None = None,
  patchify: packing_lib.Patchify | None = None,
  batch: Callable[[tuple[int, int, int]], int] | None = None,
  process_index: int = 0,
  process_count: int = 1,
  rows: Sequence[int] | None = None,
  shuffle: bool = True,
  repeat: bool = True,
  threads: int = 4,
  buffer: int = 8,
  workers: int = 0,
) -> grain.IterDataset:
  """Makes the batches of a source.

  `iter(loader)` has `get_state` and `set_state` and is saved in checkpoints.
  Every epoch has its own order. Dropped captions and crops depend only on the
  seed and the position in the sequence, so that a run is repeatable.

  Args:
    source: records by index.
    tokenizer: tokenizer of the captions.
    text_length: tokens per caption with </s>, S.
    batch_size: clips per batch of this process.
    seed: 0 to 2**32 - 1; the same on all processes.
    caption_dropout: share of captions replaced by '', in [0, 1].
    size: (frames, height, width) that every clip must have; None for any.
    crop: (frames, height, width) cropped from each clip at a uniformly random
      position.
    empty_SY: the embedding of the empty caption, for records with embedded
      texts; None tokenizes captions.
    packing: how clips of many sizes share batches; None for clips of one size.
      Each process packs its own clips.
    patchify: splits clips into patches, for packed rows.
    batch: for buckets, clips of a batch of this process by (frames, height,
      width); None has batch_size.
    process_index: this process, from 0.
    process_count: number of processes that share the source.
    rows: rows of a batch over all processes that this one takes, batch_size of
      them; None is the run of rows at process_index.
    shuffle: False keeps the order of the source.
    repeat: False ends after one epoch and drops an incomplete batch.
    threads: threads that prepare batches; 0 prepares them on demand.
    buffer: batches prepared ahead.
    workers: processes that prepare batches, each with `threads`. Outside
      `absl.app.run`, parse absl's flags before iterating.

  Returns:
    An iterable of {'frames': uint8 (B, F, H, W, 3), 'tokens': int32 (B, S)}. A
    cache gives 'latents' (B, f, h, w, c) instead of 'frames' and, if its texts
    are embedded, 'text' (B, S, Y) instead of 'tokens'. Packed rows: see
    packing.pack.

  Raises:
    ValueError: an argument out of range, too few records, or a clip of the
      wrong size; the first clip is checked here, the others when they are read.
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
  # The random generator of a record depends on its index in the global
  # sequence, which is therefore split among processes only afterwards.
  data = data.random_map(transform)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
  if packing is None:
    total = batch_size * process_count
    if rows is None:
      start = process_index * batch_size
      rows = range(start, start + batch_size)
    if process_count > 1:
      data = _Rows(data, tuple(int(row) for row in rows), total)
    data = data.batch(batch_size, drop_remainder=True)
  elif process_count > 1:
    data = data[process_index::process_count]
  if not repeat:
    # Equally many on every process, or the last step would wait for ever.
    batches = len(source) // (batch_size * process_count)
    data = data[: batches if packing is None else batches * batch_size]
  encodes = patchify is not None and patchify.encodes and workers
  if encodes:
    # Networks run here, on what the processes have rendered.
    data = data.to_iter_dataset(options).mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers)
    )
  data = _batches(data, batch or batch_size, options, packing, patchify)
  if workers and not encodes:
    data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  return data


class _Rows(grain.MapDataset):
  """Some rows of every batch of a sequence, one after another."""

  def __init__(self, parent: grain.MapDataset, rows: tuple[int, ...], total):
    super().__init__(parent)
    self._rows, self._total = rows, total

  def __len__(self) -> int:
    return len(self._parent) // self._total * len(self._rows)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    batch, row = divmod(index, len(self._rows))
    return self._parent[batch * self._total + self._rows[row]]

  def __str__(self) -> str:
    return f'Rows({self._rows} of {self._total})'


def start(iterator: grain.DatasetIterator) -> None:
  """Starts all processes that prepare batches at once.

  By default each starts when its first batch is awaited, one after another.
  """
  iterator.get_state()  # creates the processes
  iterator.start_prefetch()


def _batches(
  data: grain.MapDataset | grain.IterDataset,
  batch_size,
  options: grain.ReadOptions,
  packing: packing_lib.SequencePacking | packing_lib.Buckets | None,
  patchify: packing_lib.Patchify | None,
) -> grain.IterDataset:
  """Batches in order; packs or buckets them first where that is set."""
  if isinstance(packing, packing_lib.SequencePacking):
    data = data.map(patchify)
    if isinstance(data, grain.MapDataset):
      data = data.to_iter_dataset(options)
    data = packing_lib.pack(data, packing)
    return data.batch(batch_size, drop_remainder=True)
  if isinstance(packing, packing_lib.Buckets):
    data = data.to_iter_dataset(options)
    return packing_lib.bucket(data, packing, batch=batch_size)
  return data.to_iter_dataset(options)


def _check_arguments(arguments: dict[str, Any]) -> None:
  """Raises ValueError for arguments of make_loader that cannot work."""
  for name in ('batch_size', 'process_count', 'text_length'):
    if arguments[name] < 1:
      raise ValueError(f'{name}={arguments[name]}: expected at least 1')
  rows = arguments['rows']
  if rows is not None and len(rows) != arguments['batch_size']:
    raise ValueError(
      f'{len(rows)} rows: expected batch_size={arguments["batch_size"]}'
    )
  for name in ('threads', 'buffer', 'workers'):
    if arguments[name] < 0:
      raise ValueError(f'{name}={arguments[name]}: expected 0 or more')
  if not 0 <= arguments['seed'] < 2**32:
    raise SettingError('seed', arguments['seed'], '0 to 2**32 - 1')
  if not 0 <= arguments['caption_dropout'] <= 1:
    raise SettingError(
      'data.caption_dropout', arguments['caption_dropout'], '0 to 1'
    )
  if not 0 <= arguments['process_index'] < arguments['process_count']:
    raise ValueError(
      f'process_index={arguments["process_index"]}: expected 0 to '
      f'process_count - 1 = {arguments["process_count"] - 1}'
    )
  records, needed = len(arguments['source']), 1
  if not arguments['repeat']:
    needed = arguments['batch_size'] * arguments['process_count']
  if records < needed:
    raise ValueError(
      f'source has {records} records; expected at least {needed} (batch_size '
      'x process_count, or 1 where it repeats)'
    )
