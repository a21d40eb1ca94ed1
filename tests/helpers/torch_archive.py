"""Files in the format of torch.save, written without torch."""

import io
import pickle
import sys
import types
import zipfile

import numpy as np

STORAGES = {
  'float32': 'FloatStorage',
  'float16': 'HalfStorage',
  'bfloat16': 'BFloat16Storage',
  'int64': 'LongStorage',
}


def _modules() -> dict[str, types.ModuleType]:
  """Stand-ins that a pickle of tensors names."""
  torch, utils = types.ModuleType('torch'), types.ModuleType('torch._utils')
  torch._utils = utils

  def _rebuild_tensor_v2(*args):
    raise AssertionError('this is never called')

  _rebuild_tensor_v2.__module__ = 'torch._utils'
  _rebuild_tensor_v2.__qualname__ = '_rebuild_tensor_v2'
  utils._rebuild_tensor_v2 = _rebuild_tensor_v2
  for name in STORAGES.values():
    kind = type(name, (), {})
    kind.__module__ = 'torch'
    setattr(torch, name, kind)
  return {'torch': torch, 'torch._utils': utils}


class _Storage:
  def __init__(self, key, kind, count):
    self.key, self.kind, self.count = key, kind, count


class _Pickler(pickle.Pickler):
  """Pickles arrays as torch does tensors."""

  def __init__(self, file, modules):
    super().__init__(file, protocol=2)
    self.modules, self.data = modules, {}

  def persistent_id(self, item):
    if isinstance(item, _Storage):
      return ('storage', item.kind, item.key, 'cpu', item.count)
    return None

  def reducer_override(self, item):
    if not isinstance(item, np.ndarray):
      return NotImplemented
    kind = getattr(self.modules['torch'], STORAGES[item.dtype.name])
    base = item if item.base is None else item.base
    key = str(len(self.data))
    self.data[key] = base.tobytes()
    storage = _Storage(key, kind, base.size)
    strides = tuple(n // item.itemsize for n in item.strides)
    rebuild = self.modules['torch._utils']._rebuild_tensor_v2
    return rebuild, (storage, 0, item.shape, strides, False, {})


def save(path, tree, *, compression=zipfile.ZIP_STORED):
  """Writes a tree of dicts, lists and arrays; returns the path."""
  modules = _modules()
  before = {name: sys.modules.get(name) for name in modules}
  sys.modules.update(modules)
  try:
    file = io.BytesIO()
    pickler = _Pickler(file, modules)
    pickler.dump(tree)
  finally:
    for name, module in before.items():
      if module is None:
        del sys.modules[name]
      else:
        sys.modules[name] = module
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', file.getvalue())
    for key, data in pickler.data.items():
      archive.writestr(f'archive/data/{key}', data)
    archive.writestr('archive/version', '3\n')
  return path
