"""Reads and writes LoRA files in the dialects of other programs.

It reads and writes two dialects, diffusers' and the original repository's,
which ComfyUI uses too:

  transformer.blocks.0.attn1.to_q.lora_A.weight
  diffusion_model.blocks.0.self_attn.q.lora_down.weight, with .alpha beside it

It also reads the names of kohya's trainer, lora_unet_blocks_0_self_attn_q...
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from spacetime.checkpoint import mismatch
from spacetime.checkpoint.interop import (
  layouts,
  networks,
  tensor_files,
  wan_transformer,
)
from spacetime.models.transformer import dit as dit_lib
from spacetime.models.transformer import lora

DIALECTS = ('diffusers', 'original')
FILES = {
  'diffusers': 'pytorch_lora_weights.safetensors',
  'original': 'lora.safetensors',
}
PREFIXES = (
  'base_model.model.',
  'transformer.',
  'model.diffusion_model.',
  'diffusion_model.',
)
SECOND, KOHYA = 'transformer_2.', 'lora_unet_'
KINDS = {
  'lora_A.weight': 'down',
  'lora_down.weight': 'down',
  'lora_A.default.weight': 'down',
  'lora_B.weight': 'up',
  'lora_up.weight': 'up',
  'lora_B.default.weight': 'up',
  'alpha': 'alpha',
  'diff': 'weight',
  'diff_b': 'bias',
}
METADATA = 'lora_adapter_metadata'  # where diffusers stores alpha


@dataclasses.dataclass(frozen=True)
class Adapter:
  """Changes of a transformer's parameters, from a LoRA file.

  Attributes:
    lora: {'blocks': {...: {'a', 'b'}}, ...}, float32, with the scale in b.
    deltas: (path, layer or None, array added to that parameter).
  """

  lora: dict
  deltas: tuple[tuple[str, int | None, np.ndarray], ...]

  def merge(self, dit: Mapping, *, strength: float = 1.0) -> dict:
    """Adds the changes to a transformer's parameters.

    Args:
      dit: parameters on the device.
      strength: factor of all changes.
    """
    merged = jax.jit(lora.merge)(dit, self.lora, scale=strength)
    for path, layer, delta in self.deltas:
      *names, last = path.split('.')
      tree = merged
      for name in names:
        tree = tree[name]
      change = (strength * delta).astype(tree[last].dtype)
      index = ... if layer is None else layer
      tree[last] = tree[last].at[index].add(change)
    return merged


def read(path, model: dit_lib.DiTConfig, *, root: str = 'dit') -> Adapter:
  """Reads a LoRA file for a transformer of these sizes.

  Args:
    path: a safetensors file.
    model: sizes of the base model.
    root: 'dit', or 'dit_2' for the second of two transformers; a file that does
      not distinguish them applies to both.

  Raises:
    ValueError: not safetensors, no weights for this root, or weights for
      another base model; the message lists all keys that do not fit.
  """
  path = pathlib.Path(path)
  network = networks.of(model)
  rows = {name: row for name, *row in network.rows}
  modules, unknown = _by_module(path, rows, root)
  shapes = network.published_shapes()
  halves, other = [], []
  for module, parts in modules.items():
    if ('down' in parts) != ('up' in parts):
      halves += [tensor.name for tensor in parts.values()]
      continue
    for kind, shape in _expected(parts, module, shapes).items():
      if parts[kind].shape != shape:
        tensor = parts[kind]
        other.append(f'{tensor.name} {tensor.shape}, expected {shape}')
  faults = {
    'unknown': unknown,
    'without its other half': halves,
    'of other shapes': other,
  }
  text = mismatch.report(faults)
  if text or not modules:
    raise ValueError(
      f'{path} does not fit this transformer of {model.layers} layers of width '
      f'{model.width}; {text or "it has no LoRA weights"}; it belongs to '
      'another base model'
    )
  return _adapter(modules, rows, network, _alphas(path))


def write(
  path,
  params: Mapping,
  config: lora.LoraConfig,
  model: dit_lib.DiTConfig,
  *,
  dialect: str,
  dtype=np.float32,
) -> None:
  """Writes LoRA weights with diffusers' or the original repository's names.

  Without metadata, readers of diffusers' names assume that alpha equals the
  rank, so b contains the scale there. The original names have `.alpha`.

  Args:
    path: the file.
    params: LoRA parameters, as lora.init makes them.
    config: rank and alpha.
    model: sizes of the base model.
    dialect: one of DIALECTS.
    dtype: dtype of the file.
  """
  network, arrays = networks.of(model), {}
  leaves = {'.'.join(p): np.asarray(leaf) for p, leaf in layouts.leaves(params)}
  for name, target, layer, _ in network.rows:
    stem = target.removesuffix('.kernel')
    if f'{stem}.a' not in leaves or not target.endswith('.kernel'):
      continue
    down, up = leaves[f'{stem}.a'][layer].T, leaves[f'{stem}.b'][layer].T
    if dialect == 'diffusers':
      module = f'transformer.{name.removesuffix(".weight")}'
      arrays[f'{module}.lora_A.weight'] = down
      arrays[f'{module}.lora_B.weight'] = config.scale * up
    else:
      original = wan_transformer.original_name(name).removesuffix('.weight')
      module = f'diffusion_model.{original}'
      arrays[f'{module}.lora_down.weight'] = down
      arrays[f'{module}.lora_up.weight'] = up
      arrays[f'{module}.alpha'] = np.float32(config.alpha)
  safetensors.numpy.save_file(
    {k: np.array(v, dtype, order='C') for k, v in arrays.items()},
    path,
    metadata={'format': 'pt'},
  )


def _by_module(path, rows, root: str) -> tuple[dict, list[str]]:
  """({module: {kind: tensor}}, unknown names)."""
  kohya = {
    dialect(name.removesuffix('.weight')).replace('.', '_'): name
    for name in rows
    for dialect in (wan_transformer.original_name, str)
  }
  modules, unknown = {}, []
  opened = tensor_files.open_tensors(path)
  second = {n: t for n, t in opened.items() if n.startswith(SECOND)}
  if root == 'dit_2':
    opened = second or opened
  else:
    opened = {n: t for n, t in opened.items() if n not in second}
  for name, tensor in opened.items():
    stem, kind = _split(name.removeprefix(SECOND))
    if stem.startswith(KOHYA):
      published = kohya.get(stem.removeprefix(KOHYA), stem)
    else:
      published = wan_transformer.published_name(f'{stem}.weight')
    module = published.removesuffix('.weight')
    target = f'{module}.{kind if kind == "bias" else "weight"}'
    if kind is None or target not in rows:
      unknown.append(name)
    else:
      modules.setdefault(module, {})[kind] = tensor
  return modules, unknown


def _split(name: str) -> tuple[str, str | None]:
  """(name of the module in the file, kind or None)."""
  for prefix in PREFIXES:
    name = name.removeprefix(prefix)
  for tail, kind in KINDS.items():
    if name.endswith(f'.{tail}'):
      return name.removesuffix(f'.{tail}'), kind
  return name, None


def _expected(parts, module: str, shapes) -> dict[str, tuple | None]:
  """The expected shapes of a module's tensors by kind; None fits no tensor."""
  weight, expected = shapes[f'{module}.weight'], {}
  if 'down' in parts:
    linear = len(weight) == 2 and parts['down'].shape
    rank = parts['down'].shape[0] if linear else 0
    expected['down'] = (rank, weight[1]) if linear else None
    expected['up'] = (weight[0], rank) if linear else None
  if 'weight' in parts:
    expected['weight'] = weight
  if 'bias' in parts:
    expected['bias'] = shapes[f'{module}.bias']
  return expected


def _alphas(path: pathlib.Path) -> dict:
  """Alphas in diffusers' metadata by module, '' for all other modules."""
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
    header = json.loads(file.read(length))
  metadata = header.get('__metadata__', {}).get(METADATA)
  if not metadata:
    return {}
  values = {
    key.removeprefix('transformer.'): value
    for key, value in json.loads(metadata).items()
  }
  alphas = dict(values.get('alpha_pattern') or {})
  return alphas | ({'': values['lora_alpha']} if 'lora_alpha' in values else {})


def _adapter(modules, rows, network, alphas: dict) -> Adapter:
  """Stacks weights over the layers; lower ranks are padded with zeros."""
  matrices, deltas = {}, []
  for module, parts in modules.items():
    path, layer, layout = rows[f'{module}.weight']
    if 'down' in parts:
      down, up = (np.float32(parts[k].view()) for k in ('down', 'up'))
      rank = len(down)
      alpha = alphas.get(module, alphas.get('', rank))
      if 'alpha' in parts:
        alpha = float(parts['alpha'].view())
      matrices.setdefault(path, {})[layer] = down.T, alpha / rank * up.T
    for kind in ('weight', 'bias'):
      if kind in parts:
        path, layer, layout = rows[f'{module}.{kind}']
        delta = np.float32(parts[kind].view())
        deltas.append((path, layer, network.from_torch(delta, layout)))
  tree = {}
  for path, layers in matrices.items():
    stem = path.removesuffix('.kernel').split('.')
    layouts.put(tree, stem, _stacked(layers, network.shapes[path]))
  return Adapter(tree, tuple(deltas))


def _stacked(layers: dict, shape) -> dict:
  rank = max(a.shape[1] for a, _ in layers.values())
  a = np.zeros((*shape[:-1], rank), np.float32)
  b = np.zeros((*shape[:-2], rank, shape[-1]), np.float32)
  for layer, (down, up) in layers.items():
    index = () if layer is None else (layer,)
    a[*index, :, : down.shape[1]] = down
    b[*index, : up.shape[0]] = up
  return {'a': jnp.asarray(a), 'b': jnp.asarray(b)}
