"""Keys and values of a text, computed once for all steps of sampling.

The text is the same at every level, but its projections in each block are
inside the loop over blocks, from where no compiler moves them out of the loop
over steps.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from spacetime.models import activations
from spacetime.models.transformer.attention import KeysValues, Projection
from spacetime.models.transformer.layers import LORA
from spacetime.sharding import constrain


def embed(config, text_BSY) -> jax.Array:
  """text_BSD: children text_in and text_out of the module that calls this."""
  dtype = jnp.dtype(config.dtype)
  text_BSD = nn.Dense(config.width, dtype=dtype, name='text_in')(
    text_BSY.astype(dtype)
  )
  text_BSD = constrain(text_BSD, 'batch', None, 'width')
  text_BSD = nn.Dense(config.width, dtype=dtype, name='text_out')(
    activations.gelu(text_BSD)
  )
  return constrain(text_BSD, 'batch', None, 'width')


class _Block(nn.Module):
  """As in dit.Block, the keys and values alone; the carry is nothing."""

  config: Any  # a dit.DiTConfig

  @nn.compact
  def __call__(self, nothing, text_BSD):
    config = self.config
    project = Projection(
      config.heads,
      config.eps,
      jnp.dtype(config.dtype),
      name='cross_attention',
    )
    return nothing, project(text_BSD)


class _Stack(nn.Module):
  """As in dit.DiT, the embedding of the text and the blocks' projections."""

  config: Any  # a dit.DiTConfig

  @nn.compact
  def __call__(self, text_BSY) -> KeysValues:
    text_BSD = embed(self.config, text_BSY)
    blocks = nn.scan(
      _Block,
      variable_axes={'params': 0, LORA: 0},
      in_axes=nn.broadcast,
      length=self.config.layers,
    )(self.config, name='blocks')
    return blocks(None, text_BSD)[1]


def prepare(config, variables, text_BSY) -> KeysValues:
  """The keys and values of all blocks' cross-attention, (L, B, S, A, E).

  Args:
    config: of the transformer, a dit.DiTConfig.
    variables: its own, with pairs of LoRA if it has them.
    text_BSY: text features.
  """
  return _Stack(config).apply(variables, text_BSY)
