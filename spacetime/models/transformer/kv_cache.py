"""KV cache of the text: cross-attention keys and values, computed once.

The text is the same at every timestep, but each block projects it within the
loop over blocks, and no compiler moves that out of the loop over solver steps.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spacetime.models.transformer.attention import KVCache, Projection
from spacetime.models.transformer.dit import DiTConfig, embed_text
from spacetime.models.transformer.layers import LORA


class _Block(nn.Module):
  """The key and value projections of a dit.Block; the carry is None."""

  config: DiTConfig

  @nn.compact
  def __call__(self, carry, text_BSD):
    config = self.config
    project = Projection(
      config.heads,
      config.eps,
      jnp.dtype(config.dtype),
      name='cross_attention',
    )
    return carry, project(text_BSD)


class _Stack(nn.Module):
  """The text embedding and the blocks' projections of a dit.DiT."""

  config: DiTConfig

  @nn.compact
  def __call__(self, text_BSY) -> KVCache:
    text_BSD = embed_text(self.config, text_BSY)
    blocks = nn.scan(
      _Block,
      variable_axes={'params': 0, LORA: 0},
      in_axes=nn.broadcast,
      length=self.config.layers,
    )(self.config, name='blocks')
    return blocks(None, text_BSD)[1]


def precompute_kv(
  config: DiTConfig, variables: dict, text_BSY: jax.Array
) -> KVCache:
  """Returns the KV cache of all blocks' cross-attention, (L, B, S, A, E).

  Args:
    config: sizes of the transformer.
    variables: the transformer's, LoRA weights included.
    text_BSY: prompt embeddings.
  """
  return _Stack(config).apply(variables, text_BSY)
