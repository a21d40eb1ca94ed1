"""LoRA: low-rank weights beside the kernels of the transformer's blocks.

A kernel W (in, out) becomes W + alpha / rank * A B with A (in, rank) and
B (rank, out); only A and B are trained. B starts at zero, so that a fresh
adapter changes nothing. An adapter is the tree of all A and B:
{'blocks': {...: {'a': (L, in, r), 'b': (L, r, out)}}}.

Source: Hu et al. 2021 (LoRA), arXiv 2106.09685, section 4.1.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from spacetime import SettingError
from spacetime.models.transformer import dit as dit_lib

ATTENTION = tuple(
  f'{kind}_attention.{name}'
  for kind in ('self', 'cross')
  for name in ('q', 'k', 'v', 'out')
)
TARGETS = (*ATTENTION, 'mlp_in', 'mlp_out')


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters: sizes and target kernels.

  Attributes:
    rank: rank r of an adapter, such as 16; 0 trains every parameter instead.
    alpha: scale of the adapter: its product A B is multiplied by alpha / rank.
    targets: kernels of a block that get an adapter, such as 'self_attention.q'
      or 'mlp_in'.
    dropout: share of the inputs of A that is dropped in training.

  Raises:
    SettingError: a value out of range, or an unknown target.
  """

  rank: int = 0
  alpha: float = 16.0
  targets: tuple[str, ...] = TARGETS
  dropout: float = 0.0

  def __post_init__(self):
    if self.rank < 0:
      raise SettingError('lora.rank', self.rank, '0 or more')
    if self.alpha <= 0:
      raise SettingError('lora.alpha', self.alpha, 'a positive number')
    if not 0 <= self.dropout < 1:
      raise SettingError('lora.dropout', self.dropout, '0 or more, below 1')
    unknown = [name for name in self.targets if name not in TARGETS]
    if unknown or not self.targets:
      raise SettingError(
        'lora.targets',
        self.targets,
        f'some of {TARGETS}',
        hint=f'unknown: {unknown}' if unknown else '',
      )

  @property
  def scale(self) -> float:
    """Factor of the products A B."""
    return self.alpha / self.rank


def kernel_shapes(model: dit_lib.DiTConfig) -> dict[str, tuple[int, int, int]]:
  """Returns (L, in, out) of every kernel that may have LoRA weights."""
  wide = (model.layers, model.width, model.width)
  return {name: wide for name in ATTENTION} | {
    'mlp_in': (model.layers, model.width, model.mlp),
    'mlp_out': (model.layers, model.mlp, model.width),
  }


def init(key: jax.Array, config: LoraConfig, model: dit_lib.DiTConfig) -> dict:
  """Returns a fresh adapter: A uniform with variance 1 / (3 in), B zero.

  Raises:
    SettingError: a rank above a kernel's sizes.
  """
  shapes, tree = kernel_shapes(model), {}
  keys = jax.random.split(key, len(TARGETS))
  for name in config.targets:
    layers, fan_in, fan_out = shapes[name]
    if config.rank > min(fan_in, fan_out):
      raise SettingError(
        'lora.rank',
        config.rank,
        f'at most {min(fan_in, fan_out)}, since the kernel of {name} is '
        f'{fan_in} x {fan_out}',
      )
    bound = fan_in**-0.5
    a = jax.random.uniform(
      keys[TARGETS.index(name)],
      (layers, fan_in, config.rank),
      minval=-bound,
      maxval=bound,
    )
    b = jnp.zeros((layers, config.rank, fan_out))
    _insert(tree, name, {'a': a, 'b': b})
  return {'blocks': tree}


def variables(adapter: Mapping, config: LoraConfig) -> dict:
  """Returns the Flax collection 'lora' of layers.Dense: `a`, `b` with the
  scale, and `keep`, the fraction that dropout keeps."""

  def scaled(weights):
    keep = jnp.full(weights['a'].shape[:1], 1 - config.dropout)
    return {'a': weights['a'], 'b': config.scale * weights['b'], 'keep': keep}

  return _map_weights(scaled, adapter)


def merge(dit: Mapping, adapter: Mapping, *, scale: float) -> dict:
  """Returns the transformer's parameters with an adapter added to the kernels.

  Args:
    dit: parameters of the transformer; kernels keep their dtype.
    adapter: LoRA weights, see `init`.
    scale: alpha / rank.
  """

  def walk(tree, part):
    """A subtree of the parameters, with the adapter's part of it added."""
    if 'a' in part:
      product = jnp.einsum(
        '...ir,...ro->...io',
        part['a'].astype(jnp.float32),
        part['b'].astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
      )
      kernel = tree['kernel'].astype(jnp.float32) + scale * product
      return dict(tree) | {'kernel': kernel.astype(tree['kernel'].dtype)}
    return dict(tree) | {k: walk(tree[k], v) for k, v in part.items()}

  return walk(dit, adapter)


def merge_error(dit: Mapping, adapter: Mapping, *, scale: float) -> jax.Array:
  """Returns the relative error of the kernels' change by rounding.

  In 16 bits, changes below half a step of a weight are lost.

  Args:
    dit, adapter, scale: see `merge`.
  """

  def walk(tree, merged, part):
    if 'a' not in part:
      sums = [walk(tree[k], merged[k], v) for k, v in part.items()]
      return tuple(map(sum, zip(*sums, strict=True)))
    change = merged['kernel'] - tree['kernel'].astype(jnp.float32)
    rounded = merged['kernel'].astype(tree['kernel'].dtype)
    error = rounded.astype(jnp.float32) - merged['kernel']
    return jnp.sum(jnp.square(error)), jnp.sum(jnp.square(change))

  exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), dit)
  error, total = walk(dit, merge(exact, adapter, scale=scale), adapter)
  return jnp.sqrt(error / jnp.maximum(total, jnp.finfo(jnp.float32).tiny))


def _map_weights(function: Callable[[Mapping], dict], tree: Mapping) -> dict:
  """Applies a function to every {'a', 'b'} of an adapter."""
  if 'a' in tree:
    return function(tree)
  return {k: _map_weights(function, v) for k, v in tree.items()}


def _insert(tree: dict, name: str, weights: dict) -> None:
  """Inserts {'a', 'b'} at a dotted name."""
  *path, last = name.split('.')
  for key in path:
    tree = tree.setdefault(key, {})
  tree[last] = weights
