"""Multi-head attention as a module; how it is computed is in attend.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from spacetime.models import rope
from spacetime.models.attend import attend
from spacetime.models.layers import Dense
from spacetime.sharding import constrain


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
    kernel: of attend.KERNELS.
    exchange: of attend.EXCHANGES.
  """

  heads: int
  eps: float
  dtype: jnp.dtype
  zero: bool = False
  kernel: str = 'auto'
  exchange: str = 'auto'

  @nn.compact
  def __call__(self, x_BND, context_BSD, rope_tables=None, *, keys=None):
    """Attends.

    Args:
      x_BND: what asks.
      context_BSD: what is asked.
      rope_tables: of rope.tables, if positions turn queries and keys.
      keys: 'tokens' where the context is split over devices as x is, None
        where it is whole, as a text is.
    """
    width = x_BND.shape[-1]

    def project(name, x):
      return Dense(width, dtype=self.dtype, name=name)(x)

    def split(x, along):
      x = x.reshape(*x.shape[:-1], self.heads, width // self.heads)
      return constrain(x, 'batch', along, 'heads', None)

    q = split(RMSNorm(self.eps, name='norm_q')(project('q', x_BND)), 'tokens')
    k = split(RMSNorm(self.eps, name='norm_k')(project('k', context_BSD)), keys)
    v = split(project('v', context_BSD), keys)
    if rope_tables is not None:
      q, k = rope.rotate(q, *rope_tables), rope.rotate(k, *rope_tables)
    # Shapes are all that matters to fresh parameters: no mesh divides them.
    fresh = self.is_initializing()
    y_BNAE = attend(
      q,
      k,
      v,
      keys=None if fresh else keys,
      kernel='xla' if fresh else self.kernel,
      exchange=self.exchange,
    )
    y_BND = y_BNAE.reshape(x_BND.shape)
    init = nn.initializers.zeros if self.zero else nn.linear.default_kernel_init
    return Dense(width, dtype=self.dtype, kernel_init=init, name='out')(y_BND)
