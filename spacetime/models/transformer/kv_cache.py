"""KV cache of the text: cross-attention keys and values, computed once.

The text is the same at every timestep, but each block projects it within the
loop over blocks, and no compiler moves that out of the loop over solver steps.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spacetime.models.transformer.attention import (
  Context,
  ControlContext,
  ImageContext,
  Projection,
)
from spacetime.models.transformer.dit import DiTConfig, embed_context
from spacetime.models.transformer.layers import LORA


class _Block(nn.Module):
  """The key and value projections of a dit.Block; the carry is None."""

  config: DiTConfig

  @nn.compact
  def __call__(self, carry, text):
    config = self.config
    project = Projection(
      config.heads,
      config.eps,
      jnp.dtype(config.dtype),
      name='cross_attention',
    )
    return carry, project(text)


class _ControlBlock(nn.Module):
  """The key and value projections of a dit.ControlBlock."""

  config: DiTConfig

  @nn.compact
  def __call__(self, carry, text):
    return _Block(self.config, name='block')(carry, text)


class _Stack(nn.Module):
  """The text embedding and the blocks' projections of a dit.DiT."""

  config: DiTConfig

  @nn.compact
  def __call__(self, text: Context) -> Context:
    text = embed_context(self.config, text)

    def project(block, layers, name):
      blocks = nn.scan(
        block,
        variable_axes={'params': 0, LORA: 0},
        in_axes=nn.broadcast,
        length=layers,
      )(self.config, name=name)
      return blocks(None, text)[1]

    cache = project(_Block, self.config.layers, 'blocks')
    layers = len(self.config.control_layers)
    if not layers:
      return cache
    control = project(_ControlBlock, layers, 'control_blocks')
    return ControlContext(cache, control)


def precompute_kv(
  config: DiTConfig, variables: dict, text: jax.Array | ImageContext
) -> Context:
  """Returns the KV cache of all blocks' cross-attention, (L, B, S, A, E).

  Args:
    config: sizes of the transformer.
    variables: the transformer's, LoRA weights included.
    text: prompt embeddings (B, S, Y), with those of images if the model sees
      images.
  """
  return _Stack(config).apply(variables, text)
