"""Latents and texts of clips, computed once: a folder of ARRAY_RECORD shards.

  cache.json         what is in it and which networks made it
  tokenizer.model    where texts are embedded
  text-train-00000-of-00003.array_record, latents-...
  empty.array_record

A shard appears under its name when it is whole, so that a cache which was
interrupted goes on after its last whole shard. A text's record holds the
caption and, where an encoder is frozen, its embedding without the padding; the
one record of 'empty' is that of the empty caption, for captions left out.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import ml_dtypes
import numpy as np
import safetensors.numpy
from array_record.python import array_record_module

from spacetime.media import files

FILE, TOKENIZER = 'cache.json', 'tokenizer.model'
EMPTY = 'empty.array_record'
KINDS, SPLITS = ('text', 'latents'), ('train', 'held_out')
DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class About:
  """What a cache holds: the contents of cache.json.

  Attributes:
    autoencoder: fingerprint of what made the latents.
    text: fingerprint of the text encoder and its tokenizer; '' where captions
      are not embedded.
    frames, height, width: of the clips, in pixels.
    fps: of the clips.
    latent: (f, h, w, c).
    length: S, rows of an embedded text; 0 where there are none.
    features: Y, its columns; 0 where there are none.
    dtype: of latents and embeddings.
    source: fingerprint of the list of clips.
    counts: records of each of SPLITS.
    shard: records of a shard.
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

  def __post_init__(self):
    if self.dtype not in DTYPES:
      raise ValueError(
        f'dtype={self.dtype!r}: expected one of {sorted(DTYPES)}; change '
        '--dtype'
      )
    if self.shard < 1:
      raise ValueError(
        f'shard={self.shard}: expected 1 or more; change --shard'
      )

  def shards(self, kind: str, split: str) -> list[tuple[str, range]]:
    """(file's name, its records) of every shard."""
    count = self.counts[SPLITS.index(split)]
    total = -(-count // self.shard)
    return [
      (
        f'{kind}-{split}-{i:05d}-of-{total:05d}.array_record',
        range(i * self.shard, min((i + 1) * self.shard, count)),
      )
      for i in range(total)
    ]


def begin(folder, about: About, *, tokenizer: bytes | None = None) -> None:
  """Makes the folder, or checks that what is there is this very cache.

  Raises:
    ValueError: another cache, or something else, is there.
  """
  folder = pathlib.Path(folder)
  if (folder / FILE).is_file():
    there = dataclasses.asdict(_about(folder))
    wanted = dataclasses.asdict(about)
    changes = [
      f'{name}: {there[name]!r}, now {wanted[name]!r}'
      for name in there
      if there[name] != wanted[name]
    ]
    if changes:
      raise ValueError(
        f'{folder} holds another cache; {"; ".join(changes)}; change --out'
      )
    return
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
      raise ValueError(f'{folder} holds something else; change --out')
    if tokenizer is not None:
      (folder / TOKENIZER).write_bytes(tokenizer)
    text = json.dumps(dataclasses.asdict(about), indent=2, sort_keys=True)
    with files.atomic_write(folder / FILE) as temporary:
      temporary.write_text(text + '\n')
  except OSError as e:
    raise ValueError(
      f'{folder} cannot be written ({e.strerror}); change --out'
    ) from e


def missing(folder, about: About, kind: str) -> list[tuple[str, str, range]]:
  """(split, file's name, its records) of the shards that are not there."""
  return [
    (split, name, records)
    for split in SPLITS
    for name, records in about.shards(kind, split)
    if not (pathlib.Path(folder) / name).is_file()
  ]


def write_shard(path, records: Iterator[Mapping[str, np.ndarray]]) -> None:
  """Writes one shard, whole or not at all."""
  with files.atomic_write(pathlib.Path(path)) as temporary:
    writer = array_record_module.ArrayRecordWriter(
      os.fspath(temporary), 'group_size:1'
    )
    for record in records:
      bits = {name: _bits(array) for name, array in record.items()}
      writer.write(safetensors.numpy.save(bits))
    writer.close()


def text_record(
  caption: str, text_SY: np.ndarray | None = None
) -> dict[str, np.ndarray]:
  """The record of a caption, and of its embedding without the padding."""
  record = {'caption': np.frombuffer(caption.encode(), np.uint8)}
  return record if text_SY is None else record | {'text': text_SY}


class Cache:
  """A cache to read: `cache.split('train')[i]`.

  Raises:
    ValueError: no cache there, or one that is not whole.
  """

  def __init__(self, folder):
    self.folder = pathlib.Path(folder)
    self.about = _about(self.folder)
    absent = [
      name
      for kind in KINDS
      for _, name, _ in missing(self.folder, self.about, kind)
    ]
    if absent:
      raise ValueError(
        f'{folder} is not whole: {len(absent)} shards are missing, such as '
        f'{absent[0]}; run python -m spacetime encode --out={folder} again, '
        'which goes on where it stopped'
      )

  def split(self, name: str) -> 'Split':
    """The records of one of SPLITS."""
    sources = {
      kind: grain.sources.ArrayRecordDataSource(
        [os.fspath(self.folder / file) for file, _ in shards]
      )
      for kind in KINDS
      if (shards := self.about.shards(kind, name))
    }
    return Split(self.about, sources)

  @property
  def empty_SY(self) -> np.ndarray | None:
    """The embedding of the empty caption, None where texts have none."""
    if not self.about.length:
      return None
    path = self.folder / EMPTY
    source = grain.sources.ArrayRecordDataSource([os.fspath(path)])
    return _load(self.about, source[0])['text']

  @property
  def tokenizer(self) -> bytes | None:
    """The tokenizer of the embedded texts."""
    path = self.folder / TOKENIZER
    return path.read_bytes() if path.is_file() else None


@dataclasses.dataclass(frozen=True)
class Split:
  """Records {'latents': (f, h, w, c), 'caption': str, 'text': (S, Y)}.

  Attributes:
    about: of the cache.
    sources: records of either kind.
  """

  about: About
  sources: Mapping[str, Any]

  def __len__(self) -> int:
    return len(self.sources['text']) if self.sources else 0

  def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
    latents = _load(self.about, self.sources['latents'][index])
    return latents | self.text(index)

  def text(self, index: int) -> dict[str, np.ndarray | str]:
    """A record without its latents."""
    return _load(self.about, self.sources['text'][index])


def _about(folder: pathlib.Path) -> About:
  path = folder / FILE
  if not path.is_file():
    raise ValueError(
      f'{folder} is no cache of latents: it has no {FILE}; make one with '
      'python -m spacetime encode, or change data.dir'
    )
  try:
    values = json.loads(path.read_text())
    return About(
      **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    )
  except (TypeError, json.JSONDecodeError) as e:
    raise ValueError(
      f'{path} cannot be read ({e}); make the cache anew with python -m '
      'spacetime encode'
    ) from e


def _bits(array: np.ndarray) -> np.ndarray:
  """numpy's safetensors know no bfloat16: its bits are kept."""
  array = np.ascontiguousarray(array)
  return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


def _load(about: About, data: bytes) -> dict[str, np.ndarray | str]:
  record = safetensors.numpy.load(data)
  dtype = DTYPES[about.dtype]
  if 'caption' in record:
    record['caption'] = record['caption'].tobytes().decode()
  if 'latents' in record:
    record['latents'] = record['latents'].view(dtype)
  if 'text' in record:
    text_SY = np.zeros((about.length, about.features), dtype)
    rows_SY = record['text'].view(dtype)
    text_SY[: len(rows_SY)] = rows_SY
    record['text'] = text_SY
  return record
