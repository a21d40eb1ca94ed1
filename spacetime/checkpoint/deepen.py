"""More layers for trained weights: copies of blocks that add nothing at first.

A copy has the weights of the block before it, except for its projections into
the residual stream, which are zero. The deeper model computes what the model
did, and its training goes on from there.

Source: Wu et al. 2024, LLaMA Pro, arXiv 2401.02415, section 3.1.
"""

import jax
import jax.numpy as jnp

# What a block adds to its tokens comes out of these.
OUTPUTS = ('self_attention/out', 'cross_attention/out', 'mlp_out')


def copied_blocks(layers: int, deeper: int) -> list[int]:
  """The blocks that are followed by a copy, evenly spaced.

  Args:
    layers: number of blocks.
    deeper: number of blocks with the copies, at most twice as many.

  Raises:
    ValueError: as many blocks, fewer, or more than twice as many.
  """
  added = deeper - layers
  if not 0 < added <= layers:
    raise ValueError(
      f'{layers} layers: expected {layers + 1} to {2 * layers} with the added '
      f'ones, not {deeper}'
    )
  return [(number + 1) * layers // added - 1 for number in range(added)]


def deepen(params: dict, deeper: int) -> dict:
  """Adds blocks to a transformer; what it computes stays the same.

  Args:
    params: {'dit'} and more; leaves of dit/blocks are stacked, (layers, ...).
    deeper: number of blocks with those that are added.

  Returns:
    The same tree; leaves of dit/blocks are (deeper, ...).

  Raises:
    ValueError: see copied_blocks.
  """
  blocks = params['dit']['blocks']
  layers = len(jax.tree.leaves(blocks)[0])
  copied = copied_blocks(layers, deeper)
  order, is_copy = [], []
  for number in range(layers):
    times = 1 + (number in copied)
    order += [number] * times
    is_copy += [False, True][:times]
  order_L, is_copy_L = jnp.array(order), jnp.array(is_copy)

  def grow(path, leaf):
    name = '/'.join(key.key for key in path)
    grown = jnp.take(leaf, order_L, axis=0)
    if not name.startswith(tuple(f'{output}/' for output in OUTPUTS)):
      return grown
    return jnp.where(is_copy_L.reshape(-1, *[1] * (leaf.ndim - 1)), 0, grown)

  grown = jax.tree_util.tree_map_with_path(grow, blocks)
  return params | {'dit': params['dit'] | {'blocks': grown}}
