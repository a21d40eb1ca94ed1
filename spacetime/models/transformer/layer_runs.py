"""Some of a transformer's blocks, or all, with rows that leave some out."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.models.transformer import dit
from spacetime.models.transformer.attention import is_precomputed
from spacetime.models.transformer.layers import LORA


def runner(bound: dit.DiT, inputs: tuple, keep: Callable | None = None):
  """Returns (x_BND, first, stop) -> x_BND, which runs blocks of a bound DiT.

  Args:
    bound: the transformer with its variables.
    inputs: of a block, beside its tokens.
    keep: (tokens before, tokens after, number of the block) -> tokens; None
      takes those after.
  """
  block = dit.Block(bound.config, parent=None)
  stacks = {
    name: bound.variables[name]['blocks']
    for name in ('params', LORA)
    if 'blocks' in bound.variables.get(name, {})
  }
  modulation, text, *rest = inputs
  rest, hints = rest[:3], rest[3:]

  def layer(tree, i):
    return jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), tree
    )

  def step(x_BND, i):
    layer_text = layer(text, i) if is_precomputed(text) else text
    more = (hints[0], hints[1][i]) if hints else ()
    y_BND, out = block.apply(
      layer(stacks, i), x_BND, modulation, layer_text, *rest, *more
    )
    return (keep(x_BND, y_BND, i) if keep else y_BND), out

  def run(x_BND, first, stop):
    return jax.lax.scan(step, x_BND, jnp.arange(first, stop))[0]

  return run


@dataclasses.dataclass(frozen=True)
class WithoutLayers:
  """A `stack` of DiT.__call__ in which some rows leave out some blocks.

  Attributes:
    skipping_B: bool, the rows that leave them out.
    layers: numbers of the blocks, from 0.
  """

  skipping_B: jax.Array | np.ndarray
  layers: tuple[int, ...]

  def keep(self, before_BND, after_BND, i):
    """Block i does not change the tokens of rows that leave it out."""
    skips_B = self.skipping_B & (jnp.array(self.layers) == i).any()
    return jnp.where(skips_B[:, None, None], before_BND, after_BND)

  def __call__(self, bound: dit.DiT, x_BND: jax.Array, *inputs) -> jax.Array:
    """Runs all blocks of a bound DiT."""
    run = runner(bound, inputs, self.keep)
    return run(x_BND, 0, bound.config.layers)
