"""Applies LoRA weights to a transformer: merged, or beside its kernels.

In float32, products are added to the kernels. A kernel in 16 bits would round
small changes away (half of a step at 0.02 is 6e-5 in bfloat16), so factors stay
beside it, as layers.Dense takes them: x W + x A B. What has no factors (LoKr,
LoHa, DoRA) is merged in float32 and rounded; how much of the change that loses
is returned. Norms, biases and modulation become float32.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.checkpoint.interop import layouts, lora_changes, networks
from spacetime.checkpoint.interop.parameters import FLOAT32

Changes = Mapping[
  tuple[str, int | None], Sequence[tuple[lora_changes.Change, float]]
]


@dataclasses.dataclass(frozen=True)
class Loss:
  """What rounding took from changes that were merged into 16 bits.

  Attributes:
    unchanged: weights that should change and do not.
    count: weights that should change.
    error: sum of squares of the changes' errors.
    total: sum of squares of the changes.
  """

  unchanged: int = 0
  count: int = 0
  error: float = 0.0
  total: float = 0.0

  def __add__(self, other: 'Loss') -> 'Loss':
    fields = dataclasses.fields(self)
    return Loss(
      *(getattr(self, f.name) + getattr(other, f.name) for f in fields)
    )

  @property
  def relative_error(self) -> float:
    """Root of the error by the total; 0 without changes."""
    return math.sqrt(self.error / self.total) if self.total else 0.0

  def __str__(self) -> str:
    share = self.unchanged / self.count if self.count else 0.0
    return (
      f'relative error {self.relative_error:.2g} of the change, {share:.0%} of '
      'the weights stay as they are'
    )


@dataclasses.dataclass(frozen=True)
class Applied:
  """A transformer with LoRA weights.

  Attributes:
    params: its parameters.
    lora: factors beside its kernels: the Flax collection of layers.Dense.
    loss: what merging has rounded away.
  """

  params: dict
  lora: dict
  loss: Loss

  @property
  def tree(self) -> dict:
    """Parameters of models.networks.Networks.transform."""
    return {'dit': self.params} | ({'lora': self.lora} if self.lora else {})


@dataclasses.dataclass(frozen=True)
class Adapter:
  """Changes of a transformer's parameters, from a LoRA file.

  Attributes:
    network: the transformer that it fits.
    changes: changes by path and layer.
    ignored: names of the file for an image input that the model lacks.
  """

  network: networks.Network
  changes: Mapping[tuple[str, int | None], Sequence[lora_changes.Change]]
  ignored: tuple[str, ...] = ()

  @property
  def lora(self) -> dict:
    """Its factors as float32 parameters {'a', 'b'}, with the scale in b."""
    tree, layers_by_path = {}, {}
    for (path, layer), changes in self.changes.items():
      pairs = [(c, 1.0) for c in changes if _is_low_rank(c)]
      if pairs:
        layers_by_path.setdefault(path, {})[layer] = pairs
    for path, layers in layers_by_path.items():
      factors = _stacked(self.network, path, layers, np.float32)
      layouts.put(tree, _stem(path), factors)
    return tree

  def merge(self, dit: Mapping, *, strength: float = 1.0) -> dict:
    """A transformer's parameters with all changes added; kernels keep their
    dtype."""
    return apply(dit, [(self, strength)], beside=False).params


def apply(
  dit: Mapping,
  adapters: Sequence[tuple[Adapter, float]],
  *,
  beside: bool = True,
  dtype=None,
) -> Applied:
  """Applies adapters to a transformer's parameters, one after the other.

  Args:
    dit: parameters on the device; they are not changed.
    adapters: adapters with their strengths.
    beside: whether factors stay beside kernels in 16 bits.
    dtype: dtype of merged kernels; None keeps theirs.
  """
  network = adapters[0][0].network
  layout_by_path = {path: layout for _, path, _, layout in network.rows}
  leaves = {'.'.join(path): leaf for path, leaf in layouts.leaves(dit)}
  lora, loss = {}, Loss()
  for path, layers in _by_path(adapters):
    leaf = jnp.asarray(leaves[path])
    is_kernel = path.endswith('.kernel')
    keeps = is_kernel and not set(path.split('.')) & set(FLOAT32)
    target = (dtype or leaf.dtype) if keeps else jnp.float32
    is_float32 = leaf.dtype == jnp.float32
    factors, rest = {}, {}
    for layer, changes in layers.items():
      low_rank = all(_is_low_rank(change) for change, _ in changes)
      chosen = factors if low_rank and is_kernel else rest
      chosen[layer] = changes
    if factors and not (beside and keeps and not is_float32):
      if is_float32 and target == jnp.float32:
        pair = _stacked(network, path, factors, np.float32)
        add = jax.jit(_add, out_shardings=leaf.sharding)
        leaf = add(leaf, pair['a'], pair['b'])
      else:
        rest |= factors
      factors = {}
    if factors:
      pair = _stacked(network, path, factors, np.float32)
      layouts.put(lora, _stem(path), jax.tree.map(jnp.asarray, pair))
    if rest:
      base, leaf = leaf, jnp.array(leaf, target, copy=True)
      for layer, changes in rest.items():
        value, lost = _merged(
          network, layout_by_path[path], base, layer, changes, target
        )
        loss += lost if is_kernel else Loss()
        leaf = _put(leaf, layer, value)
    leaves[path] = leaf
  params = {}
  for path, leaf in leaves.items():
    layouts.put(params, path.split('.'), leaf)
  return Applied(params, lora, loss)


def _by_path(adapters) -> Iterator[tuple[str, dict]]:
  """Yields (path, {layer: [(change, strength)]})."""
  paths = {}
  for adapter, strength in adapters:
    for (path, layer), changes in adapter.changes.items():
      entries = paths.setdefault(path, {}).setdefault(layer, [])
      entries += [(change, strength) for change in changes]
  yield from paths.items()


def _is_low_rank(change: lora_changes.Change) -> bool:
  return isinstance(change, lora_changes.LowRank)


def _stem(path: str) -> list[str]:
  return path.removesuffix('.kernel').split('.')


def _stacked(network, path: str, layers: Mapping, dtype) -> dict:
  """Factors {'a', 'b'} of all layers; lower ranks are padded with zeros."""
  layout = next(row[3] for row in network.rows if row[1] == path)
  shape = network.shapes[path]
  pairs = {}
  for layer, changes in layers.items():
    a = [network.from_torch(change.down, layout) for change, _ in changes]
    b = [strength * c.scale * c.up.T for c, strength in changes]
    pairs[layer] = np.concatenate(a, axis=1), np.concatenate(b)
  rank = max(len(b) for _, b in pairs.values())
  a = np.zeros((*shape[:-1], rank), dtype)
  b = np.zeros((*shape[:-2], rank, shape[-1]), dtype)
  for layer, (down, up) in pairs.items():
    index = () if layer is None else (layer,)
    a[*index, :, : down.shape[1]] = down
    b[*index, : len(up)] = up
  return {'a': a, 'b': b}


def _add(kernel, a, b):
  def add(kernel, a, b):
    return kernel + jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

  if kernel.ndim == 2:
    return add(kernel, a, b)
  return jax.lax.map(lambda args: add(*args), (kernel, a, b))


def _merged(network, layout, leaf, layer, changes, dtype):
  """(the changed parameter of a layer, its loss)."""
  array = np.asarray(leaf if layer is None else leaf[layer], np.float32)
  weight = network.to_torch(array, layout)
  for change, strength in changes:
    weight = lora_changes.changed(weight, change, strength)
  exact = network.from_torch(np.float32(weight), layout)
  value = np.ascontiguousarray(exact.astype(dtype))
  if np.dtype(dtype).itemsize == 4:
    return value, Loss()
  rounded, delta = value.astype(np.float32), exact - array
  moves = delta != 0
  return value, Loss(
    int((moves & (rounded == array)).sum()),
    int(moves.sum()),
    float(np.square(rounded - exact, dtype=np.float64).sum()),
    float(np.square(delta, dtype=np.float64).sum()),
  )


def _put(leaf, layer, value):
  if layer is None:
    return jax.device_put(value, leaf.sharding)
  put = jax.jit(_set, donate_argnums=0, out_shardings=leaf.sharding)
  return put(leaf, np.int32(layer), value)


def _set(leaf, layer, value):
  return jax.lax.dynamic_update_index_in_dim(leaf, value, layer, 0)
