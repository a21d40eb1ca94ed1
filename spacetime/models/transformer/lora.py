"""Low-rank pairs beside the kernels of the transformer's blocks.

A kernel W (in, out) becomes W + alpha / rank * A B with A (in, rank) and
B (rank, out); only A and B are trained. B is zero at first, so that a fresh
pair changes nothing.

Source: Hu et al. 2021 (LoRA), arXiv 2106.09685, section 4.1.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from spacetime.models.transformer import dit as dit_lib

ATTENTION = tuple(
  f'{kind}_attention.{name}'
  for kind in ('self', 'cross')
  for name in ('q', 'k', 'v', 'out')
)
TARGETS = (*ATTENTION, 'mlp_in', 'mlp_out')


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """The pairs.

  Attributes:
    rank: r; 0 is no pairs: every parameter is trained.
    alpha: the product of a pair counts alpha / rank.
    targets: kernels of a block, of TARGETS.
    dropout: share of a pair's inputs that are dropped while training.

  Raises:
    ValueError: a rank, alpha, dropout or target that cannot be.
  """

  rank: int = 0
  alpha: float = 16.0
  targets: tuple[str, ...] = TARGETS
  dropout: float = 0.0

  def __post_init__(self):
    if self.rank < 0 or self.alpha <= 0 or not 0 <= self.dropout < 1:
      raise ValueError(
        f'lora.rank={self.rank}, lora.alpha={self.alpha}, lora.dropout='
        f'{self.dropout}: expected rank >= 0, alpha > 0 and 0 <= dropout < 1'
      )
    unknown = [name for name in self.targets if name not in TARGETS]
    if unknown or not self.targets:
      raise ValueError(
        f'lora.targets={self.targets}: unknown {unknown}: expected some of '
        f'{TARGETS}'
      )

  @property
  def scale(self) -> float:
    """What a pair's product counts."""
    return self.alpha / self.rank


def kernel_shapes(model: dit_lib.DiTConfig) -> dict[str, tuple[int, int, int]]:
  """(L, in, out) of every kernel that may have a pair."""
  wide = (model.layers, model.width, model.width)
  return {name: wide for name in ATTENTION} | {
    'mlp_in': (model.layers, model.width, model.mlp),
    'mlp_out': (model.layers, model.mlp, model.width),
  }


def init(key, config: LoraConfig, model: dit_lib.DiTConfig) -> dict:
  """Fresh pairs: {'blocks': {...: {'a': (L, in, r), 'b': (L, r, out)}}}.

  A is uniform with the variance 1 / (3 in), B zero.

  Raises:
    ValueError: a rank that is no less than a kernel's sizes.
  """
  shapes, tree = kernel_shapes(model), {}
  keys = jax.random.split(key, len(TARGETS))
  for name in config.targets:
    layers, into, out = shapes[name]
    if config.rank > min(into, out):
      raise ValueError(
        f'lora.rank={config.rank}: {name} has a kernel of {into} x {out}: '
        'expected a rank that is not above either'
      )
    bound = into**-0.5
    a = jax.random.uniform(
      keys[TARGETS.index(name)],
      (layers, into, config.rank),
      minval=-bound,
      maxval=bound,
    )
    _put(tree, name, {'a': a, 'b': jnp.zeros((layers, config.rank, out))})
  return {'blocks': tree}


def variables(pairs: Mapping, config: LoraConfig) -> dict:
  """The pairs as the layers take them: b scaled, and what dropout keeps."""

  def ready(pair):
    keep = jnp.full(pair['a'].shape[:1], 1 - config.dropout)
    return {'a': pair['a'], 'b': config.scale * pair['b'], 'keep': keep}

  return _map_pairs(ready, pairs)


def merge(dit: Mapping, pairs: Mapping, *, scale: float) -> dict:
  """The transformer's parameters with the pairs added to their kernels.

  Args:
    dit: parameters; kernels keep their dtype.
    pairs: as `init` makes them.
    scale: alpha / rank.
  """

  def walk(tree, part):
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

  return walk(dit, pairs)


def _map_pairs(call, tree: Mapping) -> dict:
  if 'a' in tree:
    return call(tree)
  return {k: _map_pairs(call, v) for k, v in tree.items()}


def _put(tree: dict, name: str, pair: dict) -> None:
  *path, last = name.split('.')
  for key in path:
    tree = tree.setdefault(key, {})
  tree[last] = pair
