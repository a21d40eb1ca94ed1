"""Safetensors files and folders of them, written a tensor at a time."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from spacetime.checkpoint.interop.tensors import DTYPES
from spacetime.media import files

NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Bytes of a shard, as diffusers cuts them.
LIMIT = 5 * 10**9

Described = Mapping[str, tuple[tuple[int, ...], np.dtype]]


class File:
  """A safetensors file whose tensors are written in any order.

  Args:
    path: made anew.
    described: shapes and dtypes by name.

  Raises:
    ValueError: a dtype that is not float32, float16 or bfloat16.
  """

  def __init__(self, path: pathlib.Path, described: Described):
    header, self._starts, start = {'__metadata__': {'format': 'pt'}}, {}, 0
    # Wide dtypes first, so that every tensor is aligned.
    for name, (shape, dtype) in sorted(
      described.items(), key=lambda item: (-item[1][1].itemsize, item[0])
    ):
      if dtype not in NAMES:
        raise ValueError(
          f'{name} is {dtype}: expected float32, float16 or bfloat16'
        )
      stop = start + math.prod(shape) * dtype.itemsize
      header[name] = {
        'dtype': NAMES[dtype],
        'shape': list(shape),
        'data_offsets': [start, stop],
      }
      self._starts[name], start = start, stop
    data = json.dumps(header, separators=(',', ':')).encode()
    data += b' ' * (-len(data) % 8)
    self._described, self._path = described, path
    self._first = 8 + len(data)
    self._file = open(path, 'wb')
    self._file.write(len(data).to_bytes(8, 'little') + data)
    self._file.truncate(self._first + start)

  def put(self, name: str, array: np.ndarray) -> None:
    """Writes one tensor, cast to the dtype described."""
    shape, dtype = self._described[name]
    assert array.shape == tuple(shape), f'{name} {array.shape}, not {shape}'
    flat = np.ascontiguousarray(array, dtype).reshape(-1)
    self._file.seek(self._first + self._starts.pop(name))
    self._file.write(flat.view(np.uint8))

  def close(self) -> None:
    """Ends the file; every tensor has to have been written."""
    assert not self._starts, f'{self._path} lacks {sorted(self._starts)}'
    self._file.close()


class Shards:
  """One file, or several with an index, in the published layout.

  Args:
    folder: where.
    stem: of the files' names.
    described: shapes and dtypes by name, in the order that they are cut.
    limit: bytes of a shard.
  """

  def __init__(self, folder, stem: str, described: Described, *, limit: int):
    cut = shards(described, limit=limit)
    names = [f'{stem}.safetensors']
    if len(cut) > 1:
      names = [
        f'{stem}-{i + 1:05d}-of-{len(cut):05d}.safetensors'
        for i in range(len(cut))
      ]
      index = {
        'metadata': {'total_size': sum(map(_size, described.values()))},
        'weight_map': {
          key: name
          for name, keys in zip(names, cut, strict=True)
          for key in keys
        },
      }
      write_json(folder / f'{stem}.safetensors.index.json', index)
    self._files = {}
    self._all = []
    for name, keys in zip(names, cut, strict=True):
      part = {key: described[key] for key in keys}
      self._all.append(File(folder / name, part))
      self._files |= dict.fromkeys(keys, self._all[-1])

  def put(self, name: str, array: np.ndarray) -> None:
    """Writes one tensor into its shard."""
    self._files[name].put(name, array)

  def close(self) -> None:
    """Ends every file."""
    for file in self._all:
      file.close()


def shards(described: Described, *, limit: int) -> list[list[str]]:
  """Names, cut into runs of at most `limit` bytes; one tensor may be more."""
  cut, room = [[]], limit
  for name, entry in described.items():
    if cut[-1] and _size(entry) > room:
      cut.append([])
      room = limit
    cut[-1].append(name)
    room -= _size(entry)
  return cut


def write_json(path: pathlib.Path, values: Mapping) -> None:
  """Writes a JSON object, sorted and indented, as publishers do."""
  path.write_text(json.dumps(values, indent=2, sort_keys=True) + '\n')


@contextlib.contextmanager
def whole(target: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A new folder that appears under its name when all is written, or never.

  Raises:
    ValueError: the target is there already, or cannot be made.
  """
  target = pathlib.Path(os.path.abspath(target))
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise ValueError(
      f'{target} is there already: nothing is overwritten; change --target'
    )
  files.check_writable(target.parent)
  with files.atomic_folder(target) as temporary:
    yield temporary


def _size(entry: Sequence) -> int:
  shape, dtype = entry
  return math.prod(shape) * dtype.itemsize
