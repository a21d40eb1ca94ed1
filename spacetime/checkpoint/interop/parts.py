"""Opens one network of a published model: its sizes and its tensors."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np

from spacetime import SettingError
from spacetime.checkpoint.interop import (
  families,
  network_files,
  networks,
  tensor_files,
  transformer_sizes,
  wan_transformer,
  weight_files,
)
from spacetime.checkpoint.interop import parameters as parameters_lib

CONFIG = 'config.json'
# One of several files of weights, by its name.
SHARD = re.compile(r'.*-\d{5}-of-(\d{5})\..*')
SUFFIXES = (*tensor_files.PICKLES, '.safetensors', '.gguf')


@dataclasses.dataclass(frozen=True)
class Part:
  """One network of a published model: its sizes and its tensors.

  Attributes:
    network: names, layouts and shapes of its tensors, with its config.
    parameters: parameters by path.
    path: the folder or file.
    extra: bytes that the file has besides, such as a tokenizer, by name.
  """

  network: networks.Network
  parameters: Mapping[str, parameters_lib.Parameter]
  path: pathlib.Path
  extra: Mapping[str, tensor_files.Tensor] = dataclasses.field(
    default_factory=dict
  )

  @property
  def config(self):
    """DiTConfig, WanAutoencoderConfig, TextConfig or ImageConfig."""
    return self.network.config

  @property
  def size(self) -> int:
    """Size of its tensors in bytes."""
    return sum(t.size for p in self.parameters.values() for t in p.tensors)

  @property
  def dtype(self) -> np.dtype:
    """The dtype of most of its bytes."""
    sizes = {}
    for parameter in self.parameters.values():
      for tensor in parameter.tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    return max(sizes, key=sizes.get)

  def load(
    self,
    mesh: jax.sharding.Mesh,
    *,
    dtype=None,
    report: Callable[[int], None] = lambda size: None,
  ) -> dict:
    """Reads the parameters onto the mesh; see parameters.load."""
    root = networks.ROOTS[self.network.kind]
    return parameters_lib.load(
      root, self.parameters, mesh, dtype=dtype, report=report
    )

  def abstract(self, mesh: jax.sharding.Mesh, *, dtype=None) -> dict:
    """Shapes of the parameters that `load` reads, with their shardings."""
    root = networks.ROOTS[self.network.kind]
    return parameters_lib.abstract(root, self.parameters, mesh, dtype=dtype)

  def fingerprint(self) -> str:
    """Fingerprint of some bytes of each array, in hex digits."""
    digest, root = hashlib.sha256(), networks.ROOTS[self.network.kind]
    for path, parameter in sorted(self.parameters.items()):
      for tensor in parameter.tensors:
        digest.update(f'{root}.{path} {tensor.shape} {tensor.dtype}'.encode())
        data = tensor.raw()
        cut = 512 * tensor.dtype.itemsize
        digest.update(data[:cut].tobytes() + data[-cut:].tobytes())
        tensor.release()
    return digest.hexdigest()

  def stamp(self) -> str:
    """Fingerprint of the files' sizes and times of change, in hex digits.

    Unlike `fingerprint`, it reads no file and changes with every change of a
    file; but a copy of the files has another stamp.
    """
    tensors = (t for p in self.parameters.values() for t in p.tensors)
    digest = hashlib.sha256()
    for path in sorted({tensor.path for tensor in tensors}):
      stat = path.stat()
      digest.update(f'{path.name} {stat.st_size} {stat.st_mtime_ns}'.encode())
    return digest.hexdigest()


def open_part(path, kind: str, *, variant: str | None = None) -> Part:
  """Opens one network from its folder, a file, or an index of shards.

  Args:
    path: path of the network; in a pipeline's folder, the folder of that kind
      is opened.
    kind: 'transformer', 'vae', 'text_encoder' or 'image_encoder'.
    variant: dtype variant of the files, such as 'bf16'.

  Raises:
    ValueError: weights that are missing, damaged, of another model, or of
      other sizes than the config beside them.
  """
  path = pathlib.Path(path)
  if network_files.is_pipeline(path):
    path = path / kind
  weights = path
  if not path.is_file() and path.suffix not in SUFFIXES:
    weights = tensor_files.find(path, variant=variant)
  opened = weight_files.open_tensors(weights)
  names = families.component(kind, opened)
  families.check(kind, names, path)
  extra = {
    name.rpartition('.')[2]: opened[name]
    for name in opened
    if name.rpartition('.')[2] in weight_files.BYTES
  }
  names = [n for n in names if n.rpartition('.')[2] not in extra]
  names = networks.published_names(kind, names, path)
  tensors = {published: opened[name] for name, published in names.items()}
  network = networks.of(_config(kind, tensors, weights))
  networks.check(network, tensors, path)
  params = parameters_lib.parameters(network, tensors)
  return Part(network, params, path, extra)


def _config(kind: str, tensors: Mapping, weights: pathlib.Path):
  """The sizes of a network: those of config.json, or of its tensors.

  Raises:
    ValueError: sizes that no network has; it names the file.
  """
  sizes = weights.parent / CONFIG
  try:
    if _belongs(sizes, weights):
      values = tensor_files.read_json(sizes)
      config = networks.FORMATS[kind].read_config(values, sizes)
      if values.get('_class_name') == 'WanModel':
        config = wan_transformer.without_images(config, tensors)
      return config
    sizes = weights
    if shard := SHARD.fullmatch(weights.name):
      raise ValueError(
        f'{weights} is one of {int(shard[1])} shards: expected its folder or '
        f'its index, such as {tensor_files.STEMS[0]}.safetensors.index.json'
      )
    if kind == 'transformer':
      return transformer_sizes.infer_config(tensors, weights)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return networks.FORMATS[kind].infer_config(shapes, weights)
  except SettingError as e:
    raise ValueError(f'{sizes}: {e}') from e


def _belongs(config: pathlib.Path, weights: pathlib.Path) -> bool:
  """Whether a config.json beside weights is theirs: in a folder of several
  models it is not."""
  if not config.is_file():
    return False
  names = (f'{stem}.' for stem in tensor_files.STEMS)
  if weights.name.startswith(tuple(names)) or weights.suffix == '.json':
    return True
  kinds = ('.safetensors', *tensor_files.PICKLES, '.gguf')
  beside = [p for p in weights.parent.iterdir() if p.suffix in kinds]
  return beside == [weights]
