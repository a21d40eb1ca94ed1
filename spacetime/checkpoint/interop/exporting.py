"""Parameters written as the published networks: config.json and tensors."""

import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np

from spacetime.checkpoint.interop import (
  export_configs,
  layouts,
  networks,
  reading,
  writing,
)
from spacetime.checkpoint.interop.tensors import Tensor

STEMS = {
  'transformer': 'diffusion_pytorch_model',
  'vae': 'diffusion_pytorch_model',
  'text_encoder': 'model',
}


def write(
  folder: pathlib.Path,
  config,
  params: Mapping,
  *,
  dtype=None,
  limit: int = writing.LIMIT,
  report: Callable[[int], None] = lambda size: None,
) -> None:
  """Writes one network as diffusers or transformers would.

  Args:
    folder: made anew.
    config: DiTConfig, AutoencoderConfig or TextConfig.
    params: the parameters' tree; leaves are arrays of JAX or numpy, all of
      which this process can read, or tensors of a file.
    dtype: None keeps all as they are; see reading.target_dtype.
    limit: bytes of a shard.
    report: told the bytes of each parameter when it is written.

  Raises:
    ValueError: parameters of another model, or one that the published code
      does not have.
  """
  network = networks.of(config)
  values = export_configs.WRITE[network.kind](config)
  leaves = {'.'.join(path): leaf for path, leaf in layouts.leaves(params)}
  check(network, leaves)
  root = networks.ROOTS[network.kind]
  dtypes = {
    path: reading.target_dtype(root, path, np.dtype(leaf.dtype), dtype)
    for path, leaf in leaves.items()
  }
  shapes = network.published_shapes()
  described, tensors = {}, {}
  for name, path, layer, layout in network.rows:
    described[name] = shapes[name], dtypes[path]
    tensors.setdefault(path, []).append((name, layer, layout))
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True)
  writing.write_json(folder / 'config.json', values)
  files = writing.Shards(folder, STEMS[network.kind], described, limit=limit)
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
  """Refuses parameters that are not the network's; all faults at once.

  Raises:
    ValueError: paths missing, unexpected or of other shapes.
  """
  shapes = [
    f'{path} {tuple(leaves[path].shape)}, expected {shape}'
    for path, shape in network.shapes.items()
    if path in leaves and tuple(leaves[path].shape) != shape
  ]
  faults = {
    'missing': network.shapes.keys() - leaves.keys(),
    'unexpected': leaves.keys() - network.shapes.keys(),
    'of other shapes': shapes,
  }
  told = [
    f'{what}: {", ".join(sorted(names))}'
    for what, names in faults.items()
    if names
  ]
  if told:
    raise ValueError(
      f'parameters that are not those of this {network.kind}; '
      f'{"; ".join(told)}; change the config, or --source'
    )


def fetch(leaf) -> np.ndarray:
  """A leaf on the host."""
  if isinstance(leaf, Tensor):
    return leaf.view()
  return np.asarray(jax.device_get(leaf))
