"""Records -> batches, by grain: shuffled, sharded, deterministic, resumable.

A record is a dict of

  video    uint8 (F, H, W, 3)
  caption  str or bytes

or, in a cache (data/latent_cache.py), latents (f, h, w, c) instead of the video
and text (S, Y) beside the caption.

The order of the records is one global sequence, fixed by the seed alone. A
process takes those rows of each global batch that its devices hold: the batch
of a step is the same, in the same order, on any number of processes and in any
order of devices, and so is the position in the data.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from spacetime import SettingError
from spacetime.data import latent_cache, packing_plan, unreadable
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
    """One record, with a crop and a dropped caption drawn from `rng`.

    Raises:
      ValueError: a record of another form or size.
    """
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
    """One record of a cache, with a dropped caption drawn from `rng`."""
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
  clip_size: Callable[[int], tuple[int, int, int]] | None = None,
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
    patchify: splits clips into patches, for packed rows.
    clip_size: (frames, height, width) of a clip by its index in the source,
      where clips are packed; None where all have those of `crop` or `size`.
    batch: for buckets, clips of a batch of this process by (frames, height,
      width), a multiple of batch_size; None has batch_size.
    process_index: this process, from 0.
    process_count: number of processes that share the source.
    rows: rows of a batch over all processes that this one takes, batch_size of
      them; None is the run of rows at process_index.
    shuffle: False keeps the order of the source.
    repeat: False ends after one epoch and drops an incomplete batch.
    threads: threads that prepare batches; 0 prepares them on demand.
    buffer: batches prepared ahead; where clips are packed, the clips of one
      batch, and so many at least.
    workers: processes that prepare batches, each with `threads`. Outside
      `absl.app.run`, parse absl's flags before iterating.

  Returns:
    An iterable of {'frames': uint8 (B, F, H, W, 3), 'tokens': int32 (B, S)}. A
    cache gives 'latents' (B, f, h, w, c) instead of 'frames' and, if its texts
    are embedded, 'text' (B, S, Y) instead of 'tokens'. Packed rows: see
    packing.collate.

  Raises:
    ValueError: an argument out of range, too few records, or a clip of the
      wrong size; the first clip is checked here, the others when they are read.
  """
  _check_arguments(locals())
  transform = _transform(
    source[0],
    tokenizer=tokenizer,
    text_length=text_length,
    caption_dropout=caption_dropout,
    size=size,
    crop=crop,
    empty_SY=empty_SY,
  )
  order = functools.partial(_order, seed=seed, shuffle=shuffle, repeat=repeat)
  # The random generator of a record depends on its index in the global
  # sequence, which is therefore split among processes only afterwards.
  data = order(source).random_map(transform)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
  total = batch_size * process_count
  if rows is None:
    start = process_index * batch_size
    rows = range(start, start + batch_size)
  rows = tuple(int(row) for row in rows)
  if packing is not None:
    numbers = order(range(len(source)))
    if clip_size is None:
      clip_size = functools.partial(_same, tuple(crop or size))
    plan = _plan(
      functools.partial(_size_at, numbers, clip_size),
      len(numbers),
      packing=packing,
      patchify=patchify,
      total=total,
      batch=batch and functools.partial(_times, batch, process_count),
    )
    own = functools.partial(_own_rows, rows, total)
    return _packed(data, plan, own, packing, patchify, options, workers)
  if process_count > 1:
    data = _Rows(data, rows, total)
  data = data.batch(batch_size, drop_remainder=True)
  if not repeat:
    # Equally many on every process, or the last step would wait for ever.
    data = data[: len(source) // total]
  data = data.to_iter_dataset(options)
  return _in_processes(data, workers)


def _transform(
  first: Mapping[str, Any],
  *,
  tokenizer: Tokenizer,
  text_length: int,
  caption_dropout: float,
  size: tuple[int, int, int] | None,
  crop: tuple[int, int, int] | None,
  empty_SY: np.ndarray | None,
):
  """The transform of a source's records, of which the first is checked."""
  if 'latents' in first:
    return _Latents(tokenizer, text_length, caption_dropout, empty_SY)
  _check_record(first, size=size, crop=crop)
  return _Clip(tokenizer, text_length, caption_dropout, size, crop)


def _order(
  source: Records | range, *, seed: int, shuffle: bool, repeat: bool
) -> grain.MapDataset:
  """The records of a source in the order of training."""
  data = grain.MapDataset.source(source).seed(seed)
  if shuffle:
    data = data.shuffle()
  return data.repeat() if repeat else data


def _in_processes(data: grain.IterDataset, workers: int) -> grain.IterDataset:
  if not workers:
    return data
  return data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))


def _plan(
  clip_size: Callable[[int], packing_plan.Size],
  count: int,
  *,
  packing: packing_lib.SequencePacking | packing_lib.Buckets,
  patchify: packing_lib.Patchify | None,
  total: int,
  batch: Callable[[packing_plan.Size], int] | None,
) -> packing_plan.Plan:
  """The plan of the batches over all processes, `total` rows each, or for
  buckets as many clips as `batch` says."""
  if isinstance(packing, packing_lib.SequencePacking):
    buffer = functools.partial(
      packing_plan.RowBuffer, packing, patchify.geometry
    )
    return packing_plan.Plan(clip_size, count, buffer, rows=total)
  buffer = functools.partial(
    packing_plan.BucketBuffer, packing, batch or functools.partial(_same, total)
  )
  return packing_plan.Plan(clip_size, count, buffer)


def _packed(
  data: grain.MapDataset,
  plan: packing_plan.Plan,
  own_rows: Callable[[int], Sequence[int]],
  packing: packing_lib.SequencePacking | packing_lib.Buckets,
  patchify: packing_lib.Patchify | None,
  options: grain.ReadOptions,
  workers: int,
) -> grain.IterDataset:
  """The batches of a plan."""
  if not isinstance(packing, packing_lib.SequencePacking):
    data = packing_plan.Reader(plan, data, own_rows, options)
    return _in_processes(data.map(packing_plan.stack_clips), workers)
  if patchify.encodes and workers:
    # The network runs here, on what the processes have rendered.
    rows = packing_plan.Reader(plan, data, own_rows, options)
    rows = _in_processes(rows, workers)
    return rows.map(functools.partial(_pack_rows, packing, patchify))
  rows = packing_plan.Reader(plan, data.map(patchify), own_rows, options)
  rows = rows.map(functools.partial(_pack_rows, packing, None))
  return _in_processes(rows, workers)


def _pack_rows(
  packing: packing_lib.SequencePacking,
  patchify: packing_lib.Patchify | None,
  rows: Sequence[Sequence[packing_lib.Item]],
) -> dict[str, np.ndarray]:
  """A batch of packed rows, of clips that are first split by `patchify`."""
  if patchify is not None:
    rows = [[patchify(clip) for clip in row] for row in rows]
  packed = [packing_lib.collate(row, packing) for row in rows]
  return {name: np.stack([row[name] for row in packed]) for name in packed[0]}


# Functions of module level, since the loader is sent to other processes.


def _same(value, _):
  return value


def _size_at(order, clip_size, position: int) -> packing_plan.Size:
  return tuple(clip_size(int(order[position])))


def _times(batch, factor: int, size: packing_plan.Size) -> int:
  return batch(size) * factor


def _own_rows(rows: Sequence[int], total: int, count: int) -> list[int]:
  """Of `count` rows of a batch, a multiple of `total`, those of the devices
  that hold `rows` of `total`."""
  per = count // total
  return [row * per + i for row in rows for i in range(per)]


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
  if arguments['packing'] is not None and not (
    arguments['clip_size'] or arguments['crop'] or arguments['size']
  ):
    raise ValueError('packing: expected clip_size, crop or size')
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
