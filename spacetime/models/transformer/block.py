"""One block of the diffusion transformer; its sizes are in dit.py."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from spacetime.models import activations
from spacetime.models.transformer import remat
from spacetime.models.transformer.attention import Attention
from spacetime.models.transformer.layers import Dense, layer_norm
from spacetime.sharding import constrain


def to_tokens(m_BTD: jax.Array, row_N: np.ndarray | jax.Array) -> jax.Array:
  """A row for every token from a table of levels; one row broadcasts."""
  if m_BTD.shape[1] == 1:
    return m_BTD
  if row_N.ndim == 2:  # of packed rows, each token's own
    m_BND = jnp.take_along_axis(m_BTD, row_N[..., None], axis=1)
  else:
    m_BND = jnp.take(m_BTD, row_N, axis=1, mode='clip')
  return constrain(m_BND, 'batch', 'tokens', 'width')


def _open_gates(key, shape, dtype=jnp.float32):
  """Shifts and scales of 0, gates of 1: with output projections of 0 a fresh
  block is the identity, and its projections learn from the first step; behind
  gates of 0 they would wait for the gates."""
  del key
  return jnp.zeros(shape, dtype).at[jnp.array([2, 5])].set(1)


class Block(nn.Module):
  """Self-attention, cross-attention and MLP, modulated by the level.

  The carry is the residual stream; everything else is the same in each layer.
  """

  config: Any  # dit.DiTConfig

  @nn.compact
  def __call__(self, x_BND, time_BT6D, text, rope_tables, row_N, segments=None):
    own, texts = segments or (None, None)
    config = self.config
    dtype = x_BND.dtype
    table = self.param('modulation', _open_gates, (6, config.width))
    m_BT6D = time_BT6D + table.astype(jnp.float32)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
      to_tokens(m_BT6D[:, :, i], row_N) for i in range(6)
    )
    x_BND = constrain(x_BND, 'batch', 'tokens', 'width')
    x_BND = checkpoint_name(x_BND, remat.BLOCK)

    y_BND = layer_norm(x_BND, config.eps) * (1 + scale_a) + shift_a
    y_BND = y_BND.astype(dtype)
    attention = functools.partial(
      Attention,
      config.heads,
      config.eps,
      dtype,
      zero=True,
      kernel=config.attention,
      exchange=config.context_attention,
    )
    y_BND = attention(name='self_attention')(
      y_BND, y_BND, rope_tables, own, keys='tokens'
    )
    x_BND = (x_BND.astype(jnp.float32) + y_BND * gate_a).astype(dtype)

    norm = nn.LayerNorm(
      epsilon=config.eps,
      dtype=jnp.float32,
      use_fast_variance=False,
      name='norm_cross',
    )
    y_BND = norm(x_BND.astype(jnp.float32)).astype(dtype)
    x_BND = x_BND + attention(name='cross_attention')(
      y_BND, text, segments=texts
    )

    y_BND = layer_norm(x_BND, config.eps) * (1 + scale_m) + shift_m
    y_BNM = Dense(config.mlp, dtype=dtype, name='mlp_in')(y_BND.astype(dtype))
    y_BNM = constrain(activations.gelu(y_BNM), 'batch', 'tokens', 'mlp')
    y_BND = Dense(
      config.width,
      dtype=dtype,
      kernel_init=nn.initializers.zeros,
      name='mlp_out',
    )(y_BNM)
    x_BND = (x_BND.astype(jnp.float32) + y_BND * gate_m).astype(dtype)
    return x_BND, None
