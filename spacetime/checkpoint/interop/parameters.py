"""Reads and writes the parameters of published networks, one at a time.

Host memory holds at most one parameter.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np

from spacetime import sharding as sharding_lib
from spacetime.checkpoint import finite, mismatch
from spacetime.checkpoint.interop import layouts, networks, tensor_files
from spacetime.checkpoint.interop.tensor_files import Tensor

# XLA on a CPU uses a buffer without a copy if it has this alignment.
ALIGNMENT = 64
# Rows per step of a transposed copy, so that they fit the CPU's cache.
ROWS = 128
# Parameters that the published code computes in float32: they are small, and
# lose precision in 16 bits.
FLOAT32 = (
  *('modulation', 'head_modulation', 'time_in', 'time_out', 'norm_cross'),
  *('end_in', 'end_out'),
)


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One parameter, composed of the tensors of a file.

  Attributes:
    path: path of the parameter, such as 'blocks.mlp_in.kernel'.
    shape: shape of the parameter.
    dtype: stored dtype; float32 if layers differ.
    tensors: one tensor, or one per layer.
    convert: views a tensor in the layout of the parameter, or of its layer.
    stacked: whether the first axis is the layers.
  """

  path: str
  shape: tuple[int, ...]
  dtype: np.dtype
  tensors: tuple[Tensor, ...]
  convert: Callable = dataclasses.field(repr=False)
  stacked: bool

  def read(self, index=None, *, dtype=None) -> np.ndarray:
    """Reads the parameter, or the part that a tuple of slices selects.

    Raises:
      ValueError: values that are not finite.
    """
    index = index or (slice(None),) * len(self.shape)
    size = [
      len(range(*cut.indices(n)))
      for cut, n in zip(index, self.shape, strict=True)
    ]
    dtype = np.dtype(dtype or self.dtype)
    out = _aligned(size, dtype)
    if not self.stacked:
      self._copy(self.tensors[0], index, out)
      return out
    layers = range(len(self.tensors))[index[0]]
    for i, layer in enumerate(layers):
      self._copy(self.tensors[layer], index[1:], out[i, ...])
    return out

  def _copy(self, tensor: Tensor, index, out: np.ndarray) -> None:
    source, target = self.convert(tensor.view())[index], out
    if source.dtype == out.dtype and source.itemsize == 2:
      # numpy copies its own dtypes faster than bfloat16.
      source, out = source.view(np.uint16), out.view(np.uint16)
    if source.ndim != 2:
      np.copyto(out, source, casting='unsafe')
    else:
      for first in range(0, source.shape[1], ROWS):
        part = slice(first, first + ROWS)
        np.copyto(out[:, part], source[:, part], casting='unsafe')
    hint = 'its training has diverged, or it is damaged; take other weights'
    if target.dtype == np.float16 and not finite.all_finite(target):
      hint = finite.OVERFLOW if finite.all_finite(source) else hint
    tensor.release()
    finite.check(target, f'{tensor.path}: {tensor.name}', hint)


def parameters(
  network: networks.Network, published: Mapping[str, Tensor]
) -> dict[str, Parameter]:
  """The network's parameters by path, from tensors by published name."""
  parts = {}
  for name, path, layer, layout in network.rows:
    parts.setdefault((path, layer is not None, layout), []).append(
      published[name]
    )
  return {
    path: Parameter(
      path,
      network.shapes[path],
      functools.reduce(_promoted, (t.dtype for t in tensors)),
      tuple(tensors),
      functools.partial(_convert, network.from_torch, layout),
      stacked,
    )
    for (path, stacked, layout), tensors in parts.items()
  }


def target_dtype(root: str, path: str, stored: np.dtype, dtype) -> np.dtype:
  """The dtype of a parameter in a network of `dtype`.

  None keeps the stored dtype. The autoencoder, and parameters that the
  published code computes in float32, keep theirs in any case.
  """
  keeps_dtype = root == 'autoencoder' or (
    root == 'dit' and any(part in FLOAT32 for part in path.split('.'))
  )
  return stored if dtype is None or keeps_dtype else np.dtype(dtype)


def load(
  root: str,
  parameters: Mapping[str, Parameter],
  mesh: jax.sharding.Mesh,
  *,
  dtype=None,
  report: Callable[[int], None] = lambda size: None,
) -> dict:
  """Reads a tree of parameters onto the mesh.

  Args:
    root: 'dit', 'text', 'image' or 'autoencoder', for
      sharding.PARAM_LOGICAL_AXES.
    parameters: parameters by path.
    mesh: mesh of all devices; only this process's parts are read.
    dtype: see target_dtype.
    report: called with the bytes of each parameter that is read.

  Raises:
    ValueError: a parameter that the mesh does not divide.
  """
  shapes, params = abstract(root, parameters, mesh, dtype=dtype), {}
  for path, shape in layouts.leaves(shapes):
    parameter = parameters['.'.join(path)]
    array = _put(parameter, shape.sharding, shape.dtype)
    layouts.put(params, list(path), array)
    report(array.nbytes)
  return params


def abstract(
  root: str,
  parameters: Mapping[str, Parameter],
  mesh: jax.sharding.Mesh,
  *,
  dtype=None,
) -> dict:
  """Shapes of the parameters that `load` reads, with their shardings."""
  shapes = {}
  for path, parameter in parameters.items():
    target = target_dtype(root, path, parameter.dtype, dtype)
    shape = jax.ShapeDtypeStruct(parameter.shape, target)
    layouts.put(shapes, [root, *path.split('.')], shape)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    sharding_lib.param_shardings(shapes, mesh),
  )[root]


def _put(parameter: Parameter, leaf_sharding, dtype: np.dtype) -> jax.Array:
  cuts = {}

  def cut(index):
    key = str(index)  # slices have no hash before Python 3.12
    if key not in cuts:
      cuts[key] = parameter.read(index, dtype=dtype)
    return cuts[key]

  array = jax.make_array_from_callback(parameter.shape, leaf_sharding, cut)
  # Blocks, so that the buffers of many parameters are not alive at once.
  return array.block_until_ready()


def _aligned(shape, dtype: np.dtype) -> np.ndarray:
  size = int(np.prod(shape)) * dtype.itemsize
  raw = np.empty(size + ALIGNMENT, np.uint8)
  first = -raw.ctypes.data % ALIGNMENT
  return raw[first : first + size].view(dtype).reshape(shape)


def _convert(from_torch, layout, tensor):
  return from_torch(tensor, layout)


def _promoted(a: np.dtype, b: np.dtype) -> np.dtype:
  return a if a == b else np.dtype(np.float32)


# -- writing -------------------------------------------------------------------

STEMS = {
  'transformer': 'diffusion_pytorch_model',
  'vae': 'diffusion_pytorch_model',
  'text_encoder': 'model',
  'image_encoder': 'model',
}


def write(
  folder: pathlib.Path,
  config,
  params: Mapping,
  *,
  dtype=None,
  limit: int = tensor_files.LIMIT,
  report: Callable[[int], None] = lambda size: None,
) -> None:
  """Writes one network in the format of diffusers or transformers.

  Args:
    folder: folder to create.
    config: DiTConfig, WanAutoencoderConfig, TextConfig or ImageConfig.
    params: tree of parameters; leaves are arrays of JAX or numpy, all of which
      this process can read, or tensors of a file.
    dtype: dtype of the network; None keeps it, see target_dtype.
    limit: largest size of a shard in bytes.
    report: called with the bytes of each parameter that is written.

  Raises:
    ValueError: parameters of another model, or one that the published code
      does not have.
  """
  network = networks.of(config)
  values = networks.FORMATS[network.kind].write_config(config)
  leaves = {'.'.join(path): leaf for path, leaf in layouts.leaves(params)}
  check(network, leaves)
  root = networks.ROOTS[network.kind]
  dtypes = {
    path: target_dtype(root, path, np.dtype(leaf.dtype), dtype)
    for path, leaf in leaves.items()
  }
  shapes = network.published_shapes()
  described, tensors = {}, {}
  for name, path, layer, layout in network.rows:
    described[name] = shapes[name], dtypes[path]
    tensors.setdefault(path, []).append((name, layer, layout))
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True)
  tensor_files.write_json(folder / 'config.json', values)
  files = tensor_files.Shards(
    folder, STEMS[network.kind], described, limit=limit
  )
  for path, rows in tensors.items():
    array = fetch(leaves[path])
    for name, layer, layout in rows:
      part = array if layer is None else array[layer]
      files.put(name, network.to_torch(part, layout))
    report(array.nbytes)
    del array
    if isinstance(leaves[path], Tensor):
      leaves[path].release()
  files.close()


def check(network: networks.Network, leaves: Mapping) -> None:
  """Checks parameters against a network; reports all faults at once.

  Raises:
    ValueError: paths missing, unexpected or of other shapes.
  """
  shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
  if text := mismatch.report(mismatch.compare(shapes, network.shapes)):
    raise ValueError(f'the parameters do not fit this {network.kind}; {text}')


def fetch(leaf) -> np.ndarray:
  """Copies a leaf to the host."""
  if isinstance(leaf, Tensor):
    return leaf.view()
  return np.asarray(jax.device_get(leaf))
