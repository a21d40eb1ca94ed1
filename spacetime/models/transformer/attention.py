"""Multi-head attention as a module; how it is computed is in attend.py."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from spacetime.models.transformer import rope
from spacetime.models.transformer.attention_plan import attend
from spacetime.models.transformer.layers import Dense
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


class KeysValues(NamedTuple):
  """What is asked, projected: (B, S, A, E) each, keys normalised."""

  k: jax.Array
  v: jax.Array


def _split(x, heads: int, along):
  x = x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
  return constrain(x, 'batch', along, 'heads', None)


def _keys_values(
  context_BSD, width: int, *, heads: int, eps: float, dtype, along
) -> KeysValues:
  """Children k, norm_k and v of the module that calls this."""
  k = Dense(width, dtype=dtype, name='k')(context_BSD)
  k = _split(RMSNorm(eps, name='norm_k')(k), heads, along)
  v = Dense(width, dtype=dtype, name='v')(context_BSD)
  return KeysValues(k, _split(v, heads, along))


class Projection(nn.Module):
  """The keys and values of an Attention of these sizes, on its parameters."""

  heads: int
  eps: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, context_BSD) -> KeysValues:
    return _keys_values(
      context_BSD,
      context_BSD.shape[-1],
      heads=self.heads,
      eps=self.eps,
      dtype=self.dtype,
      along=None,
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
  def __call__(
    self, x_BND, context, rope_tables=None, segments=None, *, keys=None
  ):
    """Attends.

    Args:
      x_BND: what asks.
      context: what is asked, (B, S, D); or its KeysValues.
      rope_tables: of rope.tables, if positions turn queries and keys.
      segments: of packed rows, attention_kernels.Segments.
      keys: 'tokens' where the context is split over devices as x is, None
        where it is whole, as a text is.
    """
    width = x_BND.shape[-1]

    q = Dense(width, dtype=self.dtype, name='q')(x_BND)
    q = _split(RMSNorm(self.eps, name='norm_q')(q), self.heads, 'tokens')
    if not isinstance(context, KeysValues):
      context = _keys_values(
        context,
        width,
        heads=self.heads,
        eps=self.eps,
        dtype=self.dtype,
        along=keys,
      )
    k, v = context
    if rope_tables is not None:
      q, k = rope.rotate(q, *rope_tables), rope.rotate(k, *rope_tables)
    # Shapes are all that matters to fresh parameters: no mesh divides them.
    fresh = self.is_initializing()
    y_BNAE = attend(
      q,
      k,
      v,
      segments,
      keys=None if fresh else keys,
      kernel='xla' if fresh else self.kernel,
      exchange=self.exchange,
    )
    y_BND = y_BNAE.reshape(x_BND.shape)
    init = nn.initializers.zeros if self.zero else nn.linear.default_kernel_init
    return Dense(width, dtype=self.dtype, kernel_init=init, name='out')(y_BND)
