"""Reads plain tensors from files of torch.save, without PyTorch.

Such a file is a zip archive of a pickle and of the bytes of each storage. The
pickle is read by an unpickler that knows three globals and refuses every other,
so that nothing in the file is executed:

  collections.OrderedDict                a plain dict
  torch._utils._rebuild_tensor_v2        a description of a tensor
  torch.FloatStorage and the like        a dtype

Source: torch/serialization.py and torch/_utils.py, the format since 1.6.
"""

import io
import mmap
import pathlib
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from spacetime.checkpoint.interop import tensor_files
from spacetime.checkpoint.interop.tensor_files import Tensor

MAGIC = b'PK\x03\x04'
STORAGES = {
  'FloatStorage': 'F32',
  'HalfStorage': 'F16',
  'BFloat16Storage': 'BF16',
  'DoubleStorage': 'F64',
  'LongStorage': 'I64',
  'IntStorage': 'I32',
  'ByteStorage': 'U8',
}
# Keys under which trainers store the weights, the first that exists: averaged
# ones first.
ROOTS = ('generator_ema', 'ema', 'generator', 'state_dict', 'module', 'model')
# What zipfile raises of entries that are missing, encrypted or of an unknown
# compression.
UNREADABLE = (KeyError, EOFError, NotImplementedError, RuntimeError, OSError)
LIMIT = 64 * 2**20  # bytes of a pickle without its tensors


class _Storage:
  """A storage: its entry in the archive and its dtype's name."""

  def __init__(self, key: str, dtype: str):
    self.key, self.dtype = key, dtype


class _Described:
  """A tensor in a storage: its offset in items, its shape and its strides."""

  def __init__(self, storage, offset, shape, stride, *rest):
    del rest  # whether it needs gradients, and hooks
    if not isinstance(storage, _Storage):
      raise pickle.UnpicklingError('a tensor without a storage')
    self.storage, self.offset = storage, int(offset)
    self.shape = tuple(int(n) for n in shape)
    self.stride = tuple(int(n) for n in stride)


class _Dict(dict):
  """An OrderedDict, whose attributes (_metadata) are not kept."""

  def __setstate__(self, state):
    del state


class _Unpickler(pickle.Unpickler):
  """Knows three globals; see the module."""

  def find_class(self, module, name):
    if (module, name) == ('collections', 'OrderedDict'):
      return _Dict
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return _Described
    if module == 'torch' and name in STORAGES:
      return STORAGES[name]
    raise pickle.UnpicklingError(f'it needs {module}.{name}')

  def persistent_load(self, pid):
    kind, dtype, key, *_ = pid
    if kind != 'storage' or not isinstance(dtype, str):
      raise pickle.UnpicklingError('a storage of another form')
    return _Storage(str(key), dtype)


def open_file(
  path: pathlib.Path, *, dtypes: Mapping[str, np.dtype] = tensor_files.READABLE
) -> dict[str, Tensor]:
  """The tensors of a file of torch.save, by name.

  Weights under a key of ROOTS, such as 'generator_ema', are taken from there.

  Args:
    path: the file.
    dtypes: dtypes that are accepted, by their names in safetensors.

  Raises:
    ValueError: another kind of pickle, one that needs code, or a damaged file.
  """
  path = pathlib.Path(path)
  tensor_files.check_downloaded(path)
  with path.open('rb') as file:
    if file.read(4) != MAGIC:
      tensor_files.refuse_pickle(path, 'it is not an archive of torch >= 1.6')
  try:
    with zipfile.ZipFile(path) as archive:
      return _read(path, archive, dtypes)
  except (zipfile.BadZipFile, zlib.error, *UNREADABLE) as e:
    raise ValueError(
      f'{path} is damaged or cut short ({str(e)[:200]}): download it again'
    ) from e
  except pickle.UnpicklingError as e:
    tensor_files.refuse_pickle(path, str(e)[:200])
  except (TypeError, AttributeError, OverflowError) as e:
    tensor_files.refuse_pickle(path, f'its contents are unusual: {e}'[:200])


def _read(path, archive: zipfile.ZipFile, dtypes) -> dict[str, Tensor]:
  entries = {entry.filename: entry for entry in archive.infolist()}
  pickles = [name for name in entries if name.endswith('/data.pkl')]
  if len(pickles) != 1 or entries[pickles[0]].file_size > LIMIT:
    raise ValueError(
      f'{path}: expected an archive of torch.save with a data.pkl'
    )
  folder = pickles[0].removesuffix('data.pkl')
  data = archive.read(pickles[0])
  try:
    tree = _Unpickler(io.BytesIO(data)).load()
    described = dict(_tensors(_root(tree)))
  except pickle.UnpicklingError:
    raise
  except Exception as e:  # a pickle can raise anything; none of it is run
    raise pickle.UnpicklingError(f'its contents are unusual: {e}') from e
  with path.open('rb') as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  if not described:
    raise ValueError(f'{path} has no tensors: expected weights by name')
  tensors, foreign = {}, []
  for name, tensor in described.items():
    entry = entries[f'{folder}data/{tensor.storage.key}']
    if tensor.storage.dtype not in dtypes:
      foreign.append(f'{name} {tensor.storage.dtype}')
      continue
    dtype = dtypes[tensor.storage.dtype]
    if entry.compress_type != zipfile.ZIP_STORED:
      raise ValueError(f'{path}: {name} is compressed: expected plain bytes')
    start = _data_start(mapped, entry) + tensor.offset * dtype.itemsize
    tensors[name] = _tensor(name, path, dtype, tensor, start, mapped, entry)
  if foreign:
    raise ValueError(
      f'{path} has {", ".join(foreign[:3])}: expected {", ".join(dtypes)}'
    )
  return tensors


def _tensor(name, path, dtype, tensor: _Described, start, mapped, entry):
  last = sum(
    (n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True)
  )
  items = last + 1 if all(tensor.shape) else 0
  end = (tensor.offset + items) * dtype.itemsize
  if min((tensor.offset, *tensor.shape, *tensor.stride)) < 0 or (
    end > entry.file_size or start + items * dtype.itemsize > len(mapped)
  ):
    raise ValueError(f'{path}: {name} is larger than its storage: damaged')
  plain = Tensor(name, path, dtype, tensor.shape, start, mapped)
  steps, step = [], 1
  for n in reversed(tensor.shape):
    steps.insert(0, step)
    step *= n
  differs = [
    a != b
    for a, b, n in zip(tensor.stride, steps, tensor.shape, strict=True)
    if n != 1
  ]
  if not any(differs):
    return plain
  strides = [n * dtype.itemsize for n in tensor.stride]

  def decode(raw):
    values = raw.view(dtype)
    view = np.lib.stride_tricks.as_strided(values, tensor.shape, strides)
    return np.ascontiguousarray(view)

  return Tensor(
    name,
    path,
    dtype,
    tensor.shape,
    start,
    mapped,
    decode,
    items * dtype.itemsize,
  )


def _data_start(mapped: mmap.mmap, entry: zipfile.ZipInfo) -> int:
  """Offset of an entry's data, behind its local header."""
  header = mapped[entry.header_offset : entry.header_offset + 30]
  if header[:4] != MAGIC:
    raise zipfile.BadZipFile('a local header is missing')
  name, extra = (int.from_bytes(header[i : i + 2], 'little') for i in (26, 28))
  return entry.header_offset + 30 + name + extra


def _root(tree):
  """The dict of weights within what was saved."""
  for _ in range(8):
    if not isinstance(tree, dict):
      break
    inner = [tree[key] for key in ROOTS if isinstance(tree.get(key), dict)]
    if not inner or any(isinstance(v, _Described) for v in tree.values()):
      return tree
    tree = inner[0]
  raise pickle.UnpicklingError('it has no dict of tensors')


def _tensors(tree: Mapping, prefix: str = '') -> Iterator:
  for key, value in tree.items():
    if isinstance(value, _Described):
      yield f'{prefix}{key}', value
    elif isinstance(value, dict):
      yield from _tensors(value, f'{prefix}{key}.')
