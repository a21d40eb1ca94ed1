"""Precomputed latents and text embeddings: a folder of ARRAY_RECORD shards.

  cache.json         sizes, and fingerprints of the networks that computed it
  tokenizer.model    if texts are embedded
  text-train-00000-of-00003.array_record, latents-...
  empty.array_record
  skipped.json      clips that could not be read, if there are any

Shards appear when they are complete, so that an interrupted cache continues
after its last shard. A text record holds the caption and, if the text encoder
is frozen, its embedding without padding. The single record of 'empty' is the
embedding of the empty caption, for dropped captions.
"""

import dataclasses
import json
import math
import os
import pathlib
import tempfile
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import ml_dtypes
import numpy as np
import safetensors.numpy
from array_record.python import array_record_module

from spacetime import SettingError
from spacetime.data import clip_list
from spacetime.media import files

FILE, TOKENIZER = 'cache.json', 'tokenizer.model'
EMPTY, SKIPPED = 'empty.array_record', 'skipped.json'
# What a record of an image-to-video model, or of one with control blocks, has
# beside its latents.
CONDITIONS = ('cond_latents', 'image', 'control_latents')
KINDS, SPLITS = ('text', 'latents'), ('train', 'held_out')
DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class CacheInfo:
  """The contents of cache.json.

  Attributes:
    autoencoder: fingerprint of the autoencoder of the latents.
    text: fingerprint of the text encoder and its tokenizer; '' if captions are
      not embedded.
    frames: frames of the clips.
    height: height of the clips in pixels.
    width: width of the clips in pixels.
    fps: frames per second of the clips.
    latent: shape of the latents, (f, h, w, c).
    length: tokens of an embedded text, S; 0 if captions are not embedded.
    features: width of an embedded text, Y; 0 if captions are not embedded.
    dtype: dtype of latents and embeddings.
    source: fingerprint of the list of clips.
    counts: number of records of each of SPLITS.
    shard: largest number of records in a shard.
    known: known frames of the latents `cond_latents` of image-to-video models:
      'first', or 'ends' for the last frame too; '' stores none.
    image: tokens and width of the embeddings `image` of the known frames; (0,
      0) stores none.
    control: channels of the latents `control_latents` of known pixels, of
      models with control blocks; 0 stores none.
    image_encoder: fingerprint of the image encoder; '' if there is none.
    mean: mean by which the autoencoder normalises each latent channel; () is 0.
    std: its standard deviation; () is 1.
  """

  autoencoder: str
  text: str
  frames: int
  height: int
  width: int
  fps: float
  latent: tuple[int, int, int, int]
  length: int
  features: int
  dtype: str
  source: str
  counts: tuple[int, int]
  shard: int
  known: str = ''
  image: tuple[int, int] = (0, 0)
  control: int = 0
  image_encoder: str = ''
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, kind = getattr(self, field.name), field.type
      if not _has_type(value, kind):
        is_plain = typing.get_origin(kind) is None
        raise SettingError(
          field.name, value, kind.__name__ if is_plain else str(kind)
        )
    if self.dtype not in DTYPES:
      raise SettingError('dtype', self.dtype, f'one of {sorted(DTYPES)}')
    if self.shard < 1:
      raise SettingError('shard', self.shard, '1 or more')
    if not self.fps > 0:
      raise SettingError('fps', self.fps, 'above 0')

  def shards(self, kind: str, split: str) -> list[tuple[str, range]]:
    """(file name, indices of its records) of every shard."""
    count = self.counts[SPLITS.index(split)]
    total = -(-count // self.shard)
    return [
      (
        f'{kind}-{split}-{i:05d}-of-{total:05d}.array_record',
        range(i * self.shard, min((i + 1) * self.shard, count)),
      )
      for i in range(total)
    ]


def create(folder, info: CacheInfo, *, tokenizer: bytes | None = None) -> None:
  """Creates the folder, or checks that it holds this cache.

  Raises:
    ValueError: the folder holds another cache or other files, or cannot be
      written.
  """
  folder = files.as_path(folder)
  absent = tokenizer is not None and not (folder / TOKENIZER).is_file()
  if (folder / FILE).is_file():
    old, new = dataclasses.asdict(_read_info(folder)), dataclasses.asdict(info)
    changes = [
      f'{name}: {old[name]!r}, now {new[name]!r}'
      for name in old
      if old[name] != new[name]
    ]
    if changes:
      raise ValueError(f'{folder} holds another cache; {"; ".join(changes)}')
    if absent:
      (folder / TOKENIZER).write_bytes(tokenizer)
    return
  files.check_writable(folder)
  if folder.is_dir() and any(folder.iterdir()):
    raise ValueError(f'{folder} holds files that are not of a cache')
  folder.mkdir(parents=True, exist_ok=True)
  if tokenizer is not None:
    (folder / TOKENIZER).write_bytes(tokenizer)
  text = json.dumps(dataclasses.asdict(info), indent=2, sort_keys=True)
  with files.atomic_write(folder / FILE) as temporary:
    temporary.write_text(text + '\n')


def missing(folder, info: CacheInfo, kind: str) -> list[tuple[str, str, range]]:
  """(split, file name, indices of its records) of the missing shards."""
  return [
    (split, name, records)
    for split in SPLITS
    for name, records in info.shards(kind, split)
    if not (files.as_path(folder) / name).is_file()
  ]


def write_shard(path, records: Iterator[Mapping[str, np.ndarray]]) -> None:
  """Writes one shard, atomically."""
  path = files.as_path(path)
  if files.is_url(path):  # the library writes to this machine alone
    with tempfile.TemporaryDirectory() as folder:
      local = pathlib.Path(folder) / path.name
      write_shard(local, records)
      files.copy(local, path)
    return
  with files.atomic_write(path) as temporary:
    writer = array_record_module.ArrayRecordWriter(
      os.fspath(temporary), 'group_size:1'
    )
    for record in records:
      bits = {name: _bits(array) for name, array in record.items()}
      writer.write(safetensors.numpy.save(bits))
    writer.close()


def read_skipped(folder) -> dict[str, dict[int, str]]:
  """Why clips were skipped, by split and index."""
  path = files.as_path(folder) / SKIPPED
  try:
    saved = json.loads(path.read_text()) if path.is_file() else {}
    return {
      split: {
        int(index): reason for index, reason in saved.get(split, {}).items()
      }
      for split in SPLITS
    }
  except (ValueError, AttributeError, RecursionError) as e:
    raise ValueError(
      f'{path} cannot be read ({e}); make the cache again with spacetime encode'
    ) from e


def write_skipped(folder, skipped: Mapping[str, Mapping[int, str]]) -> None:
  """Stores which clips were skipped, before the shard that lacks them."""
  with files.atomic_write(files.as_path(folder) / SKIPPED) as temporary:
    temporary.write_text(json.dumps(skipped, indent=2) + '\n')


def text_record(
  caption: str, text_SY: np.ndarray | None = None
) -> dict[str, np.ndarray]:
  """The record of a caption and, without padding, of its embedding."""
  record = {'caption': np.frombuffer(caption.encode(), np.uint8)}
  return record if text_SY is None else record | {'text': text_SY}


class Cache:
  """Reads a cache: `cache.split('train')[i]`.

  Raises:
    ValueError: not a cache, or an incomplete or damaged one.
  """

  def __init__(self, folder):
    self.folder = files.as_path(folder)
    self.info = _read_info(self.folder)
    absent = [
      name
      for kind in KINDS
      for _, name, _ in missing(self.folder, self.info, kind)
    ]
    if absent:
      raise ValueError(
        f'{folder} is incomplete: {len(absent)} shards are missing, such as '
        f'{absent[0]}; run spacetime encode again, which continues where it '
        'stopped'
      )
    for name in (EMPTY, TOKENIZER) if self.info.length else ():
      if not (self.folder / name).is_file():
        raise ValueError(
          f'{folder} is incomplete: {name} is missing; run spacetime encode '
          'again, which writes it'
        )

  def check(self) -> None:
    """Opens every file.

    Raises:
      ValueError: one is damaged, or there are no clips.
    """
    for name in SPLITS:
      if not len(self.split(name)):
        raise ValueError(
          f'{self.folder} has no {name} clips; make it with spacetime encode '
          'of clips that can be read'
        )
    self.empty_SY  # noqa: B018 - reads it

  def split(self, name: str) -> 'Split':
    """The records of one of SPLITS.

    Raises:
      ValueError: a file is damaged.
    """
    sources = {
      kind: _open(
        [self.folder / file for file, _ in shards],
        sum(len(numbers) for _, numbers in shards),
      )
      for kind in KINDS
      if (shards := self.info.shards(kind, name))
    }
    skipped = read_skipped(self.folder)[name]
    count = self.info.counts[SPLITS.index(name)]
    indices = tuple(i for i in range(count) if i not in skipped)
    return Split(self.info, sources, indices)

  @property
  def identity(self) -> str:
    """Fingerprint of the list of clips, without those that were skipped."""
    skipped = read_skipped(self.folder)
    if not any(skipped.values()):
      return self.info.source
    indices = [sorted(skipped[split]) for split in SPLITS]
    return clip_list.fingerprint(self.info.source, *indices)

  @property
  def empty_SY(self) -> np.ndarray | None:
    """The embedding of the empty caption; None if texts are not embedded."""
    if not self.info.length:
      return None
    source = _open([self.folder / EMPTY], 1)
    return _load(self.info, source[0])['text']

  @property
  def tokenizer(self) -> bytes | None:
    """The sentencepiece model of the embedded texts."""
    path = self.folder / TOKENIZER
    return path.read_bytes() if path.is_file() else None


@dataclasses.dataclass(frozen=True)
class Split:
  """Records {'latents': (f, h, w, c), 'caption': str, 'text': (S, Y)}, with
  'cond_latents' (f, h, w, c) and 'image' (S, Y) for image-to-video models,
  'control_latents' (f, h, w, c) for models with control blocks.

  Attributes:
    info: contents of cache.json.
    sources: array records by kind, 'text' and 'latents'.
    indices: records that were not skipped.
  """

  info: CacheInfo
  sources: Mapping[str, Any]
  indices: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
    latents = self._load('latents', index)
    return latents | self.text(index)

  def text(self, index: int) -> dict[str, np.ndarray | str]:
    """A record without its latents."""
    return self._load('text', index)

  def _load(self, kind: str, index: int) -> dict[str, np.ndarray | str]:
    """A record of one kind.

    Raises:
      ValueError: values that are not finite.
    """
    try:
      record = _load(self.info, self.sources[kind][self.indices[index]])
    except (RuntimeError, safetensors.SafetensorError) as e:
      raise ValueError(
        f'record {index} of the cache cannot be read ({e}); make the cache '
        'again with spacetime encode'
      ) from e
    for name, array in record.items():
      if name != 'caption' and not np.isfinite(np.float32(array)).all():
        raise ValueError(
          f'record {index} of the cache: {name}: expected finite numbers, got '
          'NaN or infinity; make the cache again with spacetime encode'
        )
    return record

  def caption(self, index: int) -> str:
    """The caption of a record."""
    return self.text(index)['caption']


def _read_info(folder) -> CacheInfo:
  path = folder / FILE
  if not files.exists(path):
    raise ValueError(
      f'{folder} is not a cache of latents: it has no {FILE}; make one with '
      'spacetime encode'
    )
  try:
    values = json.loads(path.read_text())
    return CacheInfo(
      **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    )
  except (TypeError, ValueError, AttributeError, RecursionError) as e:
    raise ValueError(
      f'{path} cannot be read ({e}); make the cache again with spacetime encode'
    ) from e


def _has_type(value, kind) -> bool:
  """Whether a value of cache.json has the type of its field."""
  if typing.get_origin(kind) is tuple:
    kinds = typing.get_args(kind)
    if not isinstance(value, tuple):
      return False
    if kinds[1:] == (...,):
      kinds = kinds[:1] * len(value)
    return len(value) == len(kinds) and all(map(_has_type, value, kinds))
  if isinstance(value, bool):
    return False
  if kind is float:
    return isinstance(value, (int, float)) and math.isfinite(value)
  return isinstance(value, kind) and (kind is not int or value >= 0)


def _open(paths: list, count: int) -> grain.sources.ArrayRecordDataSource:
  """Opens the shards of so many records.

  Raises:
    ValueError: one is damaged, or they hold another number.
  """
  try:
    source = _source(paths)
  except RuntimeError:
    for path in paths:
      try:
        _source([path])
      except RuntimeError as e:
        reason = f' ({e})' if str(e) else ''
        raise ValueError(
          f'{path} is damaged{reason}; remove it and run spacetime encode again'
        ) from e
    raise
  if len(source) != count:
    raise ValueError(
      f'{paths[0].parent} is damaged: {len(source)} records in {len(paths)} '
      f'shards such as {paths[0].name}, expected {count}; make the cache again '
      'with spacetime encode'
    )
  return source


def _source(paths: list) -> grain.sources.ArrayRecordDataSource:
  return grain.sources.ArrayRecordDataSource([*map(os.fspath, paths)])


def _bits(array: np.ndarray) -> np.ndarray:
  """The bits of bfloat16, which numpy's safetensors do not support."""
  array = np.ascontiguousarray(array)
  return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


def _load(info: CacheInfo, data: bytes) -> dict[str, np.ndarray | str]:
  record = safetensors.numpy.load(data)
  dtype = DTYPES[info.dtype]
  if 'caption' in record:
    record['caption'] = record['caption'].tobytes().decode()
  for name in ('latents', *CONDITIONS):
    if name in record:
      record[name] = record[name].view(dtype)
  if 'text' in record:
    text_SY = np.zeros((info.length, info.features), dtype)
    rows_SY = record['text'].view(dtype)
    text_SY[: len(rows_SY)] = rows_SY
    record['text'] = text_SY
  return record
