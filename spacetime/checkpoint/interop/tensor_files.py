"""Reads and writes safetensors files and folders, tensor by tensor.

Files are memory-mapped: a tensor takes memory only while it is used.

Source: the format of huggingface/safetensors: eight bytes of length, a JSON
header of that length, the data.
"""

import dataclasses
import itertools
import json
import math
import mmap
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from spacetime.checkpoint import finite, mismatch
from spacetime.media import files

DTYPES = {
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(jnp.bfloat16),
}
FLOAT8 = {
  'F8_E4M3': np.dtype(jnp.float8_e4m3fn),
  'F8_E5M2': np.dtype(jnp.float8_e5m2),
}
# Every dtype of numbers that a small file, such as one of LoRA weights, may
# have.
READABLE = (
  DTYPES
  | FLOAT8
  | {
    'F64': np.dtype(np.float64),
    'I64': np.dtype(np.int64),
    'I32': np.dtype(np.int32),
    'U8': np.dtype(np.uint8),
  }
)
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')
# First bytes of what stands in the place of a file -> what it is.
PLACEHOLDERS = {
  b'version https://git-lfs': (
    'a pointer of git-lfs: expected the file itself, which `git lfs pull` '
    'fetches'
  ),
  b'<!doctype html': 'a web page: expected the file itself; download it again',
  b'<html': 'a web page: expected the file itself; download it again',
}
# The names before '.safetensors' that diffusers and transformers write.
STEMS = ('diffusion_pytorch_model', 'model')
# Dtype variants of files, which may replace the files without a variant.
VARIANTS = ('bf16', 'fp16', 'fp32')


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a file.

  Attributes:
    name: name of the tensor in the file.
    path: path of the file.
    dtype: numpy dtype.
    shape: stored shape.
    start: offset of the first byte in the file.
    mapped: memory map of the file.
    decode: bytes -> values, of tensors that are stored in another form than
      their dtype, such as quantised ones; None reads them as they are.
    stored_bytes: size in the file, where `decode` is set.
  """

  name: str
  path: pathlib.Path
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int
  mapped: mmap.mmap = dataclasses.field(repr=False)
  decode: Callable[[np.ndarray], np.ndarray] | None = dataclasses.field(
    default=None, repr=False
  )
  stored_bytes: int = 0

  @property
  def size(self) -> int:
    """Size in the file, in bytes."""
    if self.decode is not None:
      return self.stored_bytes
    return math.prod(self.shape) * self.dtype.itemsize

  def raw(self) -> np.ndarray:
    """A read-only view of the bytes in the file."""
    return np.frombuffer(self.mapped, np.uint8, self.size, self.start)

  def view(self) -> np.ndarray:
    """The values: a read-only view without a copy, unless they are decoded."""
    if self.decode is not None:
      return self.decode(self.raw()).reshape(self.shape)
    return self.raw().view(self.dtype).reshape(self.shape)

  def release(self) -> None:
    """Returns the pages that were read to the operating system."""
    page = mmap.PAGESIZE
    start = self.start // page * page
    if self.size and hasattr(mmap, 'MADV_DONTNEED'):
      length = self.start + self.size - start
      self.mapped.madvise(mmap.MADV_DONTNEED, start, length)


def find(folder: pathlib.Path, *, variant: str | None = None) -> pathlib.Path:
  """Finds the weights of a folder: a file, or the index of its shards.

  Args:
    folder: folder of one network.
    variant: as in `diffusion_pytorch_model.bf16.safetensors`; None prefers the
      file without a variant.

  Raises:
    ValueError: no weights, only pickles, or not the variant.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise ValueError(f'{folder}: no such folder')
  for marked in [variant] if variant else [None, *VARIANTS]:
    mark = f'.{marked}' if marked else ''
    for stem in STEMS:
      for name in (
        f'{stem}{mark}.safetensors',
        f'{stem}.safetensors.index{mark}.json',
        f'{stem}{mark}.safetensors.index.json',
      ):
        if (folder / name).is_file():
          return folder / name
  plain = sorted(folder.glob('*.safetensors'))
  if len(plain) == 1 and not variant:
    return plain[0]
  indexes = sorted(folder.glob('*.safetensors.index*.json'))
  if len(indexes) == 1 and not variant:
    return indexes[0]
  others = (*PICKLES, '.gguf')
  others = [p for p in sorted(folder.iterdir()) if p.suffix in others]
  if len(others) == 1 and not plain and not variant:
    return others[0]
  held = ', '.join(p.name for p in sorted(folder.iterdir())) or 'nothing'
  raise ValueError(
    f'{folder} has no weights{f" of variant {variant}" if variant else ""}: '
    f'expected {STEMS[0]}.safetensors or {STEMS[1]}.safetensors, or shards '
    f'with an index; it holds {held}'
  )


def refuse_pickle(path: pathlib.Path, reason: str = '') -> None:
  """Raises a ValueError that explains why a pickle is refused."""
  raise ValueError(
    f'{path} is a pickle, which may run any code when it is read'
    + (f': {reason}' if reason else '')
    + ': expected safetensors, or plain tensors of torch.save; take the '
    '.safetensors file that most publishers offer, or convert it where you '
    'trust it with safetensors.torch.save_file(torch.load(path, '
    "weights_only=True), 'model.safetensors')"
  )


def is_safetensors(path: pathlib.Path) -> bool:
  """Whether a file begins as safetensors does: with the length of a header, and
  the header."""
  if not path.is_file():
    return False
  with path.open('rb') as file:
    first = file.read(9)
  length = int.from_bytes(first[:8], 'little')
  return first[8:] == b'{' and 8 + length <= path.stat().st_size


def check_downloaded(path: pathlib.Path) -> None:
  """Refuses what stands in the place of a file that was not downloaded.

  Raises:
    ValueError: nothing, a folder, a pointer of git-lfs or a web page.
  """
  files.check_file(path)
  with path.open('rb') as file:
    first = file.read(64).lstrip().lower()
  for mark, text in PLACEHOLDERS.items():
    if first.startswith(mark):
      raise ValueError(f'{path} is {text}')


def open_tensors(
  path: pathlib.Path, *, dtypes: Mapping[str, np.dtype] = DTYPES
) -> dict[str, Tensor]:
  """The tensors of a file, or of all shards that an index names.

  Args:
    path: the file or the index.
    dtypes: dtypes that are accepted, by their names in safetensors.

  Raises:
    ValueError: a file that is missing, damaged or a pickle; an index that does
      not agree with its shards.
  """
  path = pathlib.Path(path)
  if is_safetensors(path):  # whatever its name
    return open_file(path, dtypes=dtypes)
  if path.suffix in PICKLES and path.is_file():
    check_downloaded(path)
    refuse_pickle(path)
  if path.suffix != '.json':
    return open_file(path, dtypes=dtypes)
  index = read_json(path)
  names = index.get('weight_map')
  if (
    not isinstance(names, dict)
    or not names
    or not all(isinstance(file, str) for file in names.values())
  ):
    raise ValueError(f"{path}: expected a 'weight_map' of names to files")
  files = sorted(set(names.values()))
  absent = [file for file in files if not (path.parent / file).is_file()]
  if absent:
    keys = sorted(key for key, file in names.items() if file in absent)
    raise ValueError(
      f'{path} names missing files {mismatch.listed(absent)} for '
      f'{mismatch.listed(keys)}: expected every shard beside its index'
    )
  tensors, doubled = {}, set()
  for file in files:
    opened = open_file(path.parent / file, dtypes=dtypes)
    doubled |= opened.keys() & tensors.keys()
    tensors |= opened
  moved = {
    key
    for key in names.keys() & tensors.keys()
    if tensors[key].path != path.parent / names[key]
  }
  faults = {
    'in no shard': names.keys() - tensors.keys(),
    'not in the index': tensors.keys() - names.keys(),
    'in two shards': doubled,
    'in another shard than it says': moved - doubled,
  }
  if text := mismatch.report(faults):
    raise ValueError(f'{path} does not agree with its shards; {text}')
  return tensors


def open_file(
  path: pathlib.Path, *, dtypes: Mapping[str, np.dtype] = DTYPES
) -> dict[str, Tensor]:
  """The tensors of one safetensors file.

  Args:
    path: the file.
    dtypes: dtypes that are accepted, by their names in safetensors.

  Raises:
    ValueError: no such file, not safetensors, cut short, or another dtype.
  """
  path = pathlib.Path(path)
  check_downloaded(path)
  size = path.stat().st_size
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    data = 8 + length
    if size < 8 or data > size:
      raise ValueError(
        f'{path} has {size} bytes, fewer than its header of {data}: cut short, '
        'or not safetensors; download it again'
      )
    header = _parse_header(path, file.read(length))
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  tensors, foreign, cut, uneven = {}, [], [], []
  for name, entry in header.items():
    start, stop = entry['data_offsets']
    if entry['dtype'] not in dtypes:
      foreign.append(f'{name} {entry["dtype"]}')
      continue
    dtype, shape = dtypes[entry['dtype']], tuple(entry['shape'])
    tensor = Tensor(name, path, dtype, shape, data + start, mapped)
    if data + stop > size:
      cut.append(name)
    if stop - start != tensor.size:
      uneven.append(name)
    tensors[name] = tensor
  if cut:
    raise ValueError(
      f'{path} is cut short at {size} bytes, within {mismatch.listed(cut)}: '
      'download it again'
    )
  if foreign:
    raise ValueError(
      f'{path} has {mismatch.listed(foreign, most=3)}: expected '
      f'{", ".join(dtypes)}; '
      'take weights that are not quantised'
    )
  if uneven:
    raise ValueError(
      f'{path}: {mismatch.listed(uneven)}: the size of the data differs from '
      'that of the shape; the file is damaged; download it again'
    )
  if shared := _overlapping(tensors.values()):
    raise ValueError(
      f'{path}: {mismatch.listed(shared, most=3)}: their data are those of '
      'another tensor too; the file is damaged; download it again'
    )
  return tensors


def _parse_header(path: pathlib.Path, data: bytes) -> dict:
  doubled = []

  def once(pairs):
    values = dict(pairs)
    if len(values) < len(pairs):
      names = [name for name, _ in pairs]
      doubled.extend(name for name in values if names.count(name) > 1)
    return values

  try:
    header = json.loads(data, object_pairs_hook=once)
    header.pop('__metadata__', None)
    valid = all(_is_entry(entry) for entry in header.values())
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
    valid = False
  if not valid:
    raise ValueError(
      f'{path}: its header is not that of safetensors; it is damaged, or '
      'another kind of file'
    )
  if doubled:
    raise ValueError(
      f'{path} has {mismatch.listed(doubled, most=3)} twice: the file is '
      'damaged; download it again'
    )
  return header


def _is_entry(entry: Mapping) -> bool:
  """Whether an entry of a header describes a tensor."""
  shape, offsets = entry['shape'], entry['data_offsets']
  return (
    isinstance(entry['dtype'], str)
    and isinstance(shape, list)
    and len(offsets) == 2
    and all(type(n) is int and n >= 0 for n in (*shape, *offsets))
  )


def _overlapping(tensors: Iterable[Tensor]) -> list[str]:
  """Names of tensors whose data begin within those of another."""
  ordered = sorted((t for t in tensors if t.size), key=lambda t: t.start)
  return [
    after.name
    for before, after in itertools.pairwise(ordered)
    if after.start < before.start + before.size
  ]


def metadata(path: pathlib.Path) -> dict[str, str]:
  """The metadata in the header of a safetensors file; {} of other files."""
  path = pathlib.Path(path)
  if not is_safetensors(path):
    return {}
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    values = json.loads(file.read(length)).get('__metadata__')
  return values if isinstance(values, dict) else {}


def as_float32(tensor: Tensor) -> np.ndarray:
  """The values of a tensor of any dtype in float32."""
  if tensor.dtype in FLOAT8.values():
    return decode_float8(tensor.raw(), dtype=tensor.dtype).reshape(tensor.shape)
  return tensor.view().astype(np.float32)


def decode_float8(raw: np.ndarray, *, dtype: np.dtype) -> np.ndarray:
  """float32 values of float8 bytes, by a table, which is faster than a cast."""
  table = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
  return table[raw]


def read_json(path: pathlib.Path) -> dict:
  """Reads a JSON object from a file.

  Raises:
    ValueError: no such file, or no JSON object in it.
  """
  path = pathlib.Path(path)
  check_downloaded(path)
  try:
    values = json.loads(path.read_text('utf-8-sig'))
  except (ValueError, RecursionError) as e:
    raise ValueError(f'{path} is not JSON ({e}); download it again') from e
  if not isinstance(values, dict):
    raise ValueError(f'{path}: expected a JSON object')
  return values


# -- writing -------------------------------------------------------------------

NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Default size of a shard in bytes, as in diffusers.
LIMIT = 5 * 10**9

Described = Mapping[str, tuple[tuple[int, ...], np.dtype]]


class File:
  """A safetensors file whose tensors are written in any order.

  Args:
    path: file to create.
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
    """Writes one tensor, cast to its described dtype.

    Raises:
      ValueError: values that are not finite, or that the dtype cannot hold.
    """
    shape, dtype = self._described[name]
    assert array.shape == tuple(shape), f'{name} {array.shape}, not {shape}'
    with np.errstate(over='ignore'):  # checked below
      flat = np.ascontiguousarray(array, dtype).reshape(-1)
    finite.check_cast(flat, f'{self._path}: {name}')
    self._file.seek(self._first + self._starts.pop(name))
    self._file.write(flat.view(np.uint8))

  def close(self) -> None:
    """Closes the file, after every tensor has been written."""
    assert not self._starts, f'{self._path} lacks {sorted(self._starts)}'
    self._file.close()


class Shards:
  """One file, or several with an index, in the published layout.

  Args:
    folder: folder of the files.
    stem: stem of the files' names.
    described: shapes and dtypes by name, in the order of the shards.
    limit: largest size of a shard in bytes.
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
    """Closes every file."""
    for file in self._all:
      file.close()


def shards(described: Described, *, limit: int) -> list[list[str]]:
  """Divides names into shards of at most `limit` bytes, or of one tensor."""
  cut, room = [[]], limit
  for name, entry in described.items():
    if cut[-1] and _size(entry) > room:
      cut.append([])
      room = limit
    cut[-1].append(name)
    room -= _size(entry)
  return cut


def write_json(path: pathlib.Path, values: Mapping) -> None:
  """Writes a JSON object, sorted and indented, as in published folders."""
  path.write_text(json.dumps(values, indent=2, sort_keys=True) + '\n')


def _size(entry: Sequence) -> int:
  shape, dtype = entry
  return math.prod(shape) * dtype.itemsize
