"""Some of a transformer's blocks, or all, with rows that leave some out."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

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


def without_layers(skipping_B: jax.Array, layers: Sequence[int]) -> Callable:
  """A `stack` of DiT.__call__ in which some rows leave out some blocks.

  Args:
    skipping_B: bool, the rows that leave them out.
    layers: numbers of the blocks, from 0.
  """
  skipped = jnp.array(sorted(layers))

  def stack(bound, x_BND, *inputs):
    """All blocks; those that a row leaves out do not change its tokens."""

    def keep(before_BND, after_BND, i):
      skips_B = skipping_B & (skipped == i).any()
      return jnp.where(skips_B[:, None, None], before_BND, after_BND)

    run = runner(bound, inputs, keep)
    return run(x_BND, 0, bound.config.layers)

  return stack
