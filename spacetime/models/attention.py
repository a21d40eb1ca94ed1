"""Attention: the one place where queries meet keys."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spacetime.models import rope
from spacetime.models.layers import Dense
from spacetime.sharding import constrain


def attend(q_BNAE: jax.Array, k_BSAE: jax.Array, v_BSAE: jax.Array):
  """softmax(q k' / sqrt(E)) v for every head; softmax in float32.

  Plain matrix products: on a CPU their backward pass is faster than that of
  jax.nn.dot_product_attention (see BUILD_NOTES.md).

  Returns:
    (B, N, A, E), in the dtype of q.
  """
  scale = q_BNAE.shape[-1] ** -0.5
  logits_BANS = jnp.einsum(
    'BNAE,BSAE->BANS',
    q_BNAE * scale,
    k_BSAE,
    preferred_element_type=jnp.float32,
  )
  weights_BANS = jax.nn.softmax(logits_BANS, axis=-1).astype(q_BNAE.dtype)
  return jnp.einsum('BANS,BSAE->BNAE', weights_BANS, v_BSAE)


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32."""

  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(mean + self.eps)).astype(x.dtype) * (
      scale.astype(x.dtype)
    )


class Attention(nn.Module):
  """Multi-head attention with normalised queries and keys.

  Queries and keys are RMS-normalised over all heads together, as in Wan, and
  turned by their positions if tables are given.

  Attributes:
    heads: A; the width of x is A * E.
    eps: of the two norms.
    dtype: of the matrix products.
    zero: starts the output projection at zero, so that a branch without a
      gate begins as nothing.
  """

  heads: int
  eps: float
  dtype: jnp.dtype
  zero: bool = False

  @nn.compact
  def __call__(self, x_BND, context_BSD, rope_tables=None):
    width = x_BND.shape[-1]

    def project(name, x):
      return Dense(width, dtype=self.dtype, name=name)(x)

    def split(x):
      x = x.reshape(*x.shape[:-1], self.heads, width // self.heads)
      return constrain(x, 'batch', None, 'heads', None)

    q = split(RMSNorm(self.eps, name='norm_q')(project('q', x_BND)))
    k = split(RMSNorm(self.eps, name='norm_k')(project('k', context_BSD)))
    v = split(project('v', context_BSD))
    if rope_tables is not None:
      q, k = rope.rotate(q, *rope_tables), rope.rotate(k, *rope_tables)
    y_BND = attend(q, k, v).reshape(x_BND.shape)
    init = nn.initializers.zeros if self.zero else nn.linear.default_kernel_init
    return Dense(width, dtype=self.dtype, kernel_init=init, name='out')(y_BND)
