"""Multi-head attention as a Flax module; attention_plan.py computes it."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from spacetime.models.transformer import rope
from spacetime.models.transformer.attention_kernels import Segments
from spacetime.models.transformer.attention_plan import attend
from spacetime.models.transformer.layers import Dense, RMSNorm
from spacetime.sharding import constrain

IMAGE = '_image'  # ending of the names of keys and values of images


class KVCache(NamedTuple):
  """Keys and values of a context, (B, S, A, E) each; keys are normalised."""

  k: jax.Array
  v: jax.Array


class ImageContext(NamedTuple):
  """Context of a model that sees images beside the text.

  Attributes:
    text: prompt embeddings (B, S, .), or their KVCache.
    image: embeddings of the images, or their KVCache.
  """

  text: 'jax.Array | KVCache'
  image: 'jax.Array | KVCache'


class ControlContext(NamedTuple):
  """The KV caches of a text for a transformer with control blocks.

  Attributes:
    text: KV cache of the blocks.
    control: KV cache of the control blocks.
  """

  text: KVCache
  control: KVCache


Context = jax.Array | KVCache | ImageContext | ControlContext


def is_precomputed(context: Context) -> bool:
  """Whether a context is a KV cache."""
  if isinstance(context, (ImageContext, ControlContext)):
    context = context.text
  return isinstance(context, KVCache)


def _split_heads(x: jax.Array, heads: int, axis: str | None) -> jax.Array:
  """Splits the last axis into heads; `axis` is the logical axis of tokens."""
  x = x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
  return constrain(x, 'batch', axis, 'heads', None)


def _project_kv(
  context_BSD: jax.Array,
  width: int,
  *,
  heads: int,
  eps: float,
  dtype: jnp.dtype,
  axis: str | None,
  mark: str = '',
) -> KVCache:
  """Projects a context; creates children k, norm_k and v of the caller, whose
  names end in `mark`."""
  k = Dense(width, dtype=dtype, name='k' + mark)(context_BSD)
  k = _split_heads(RMSNorm(eps, name='norm_k' + mark)(k), heads, axis)
  v = Dense(width, dtype=dtype, name='v' + mark)(context_BSD)
  return KVCache(k, _split_heads(v, heads, axis))


class Projection(nn.Module):
  """Key and value projections of an Attention with the same parameters."""

  heads: int
  eps: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, context) -> KVCache | ImageContext:
    def project(context_BSD, mark=''):
      """Keys and values (B, S, A, E) of a context; a mark names its kernels."""
      return _project_kv(
        context_BSD,
        context_BSD.shape[-1],
        heads=self.heads,
        eps=self.eps,
        dtype=self.dtype,
        axis=None,
        mark=mark,
      )

    if not isinstance(context, ImageContext):
      return project(context)
    return ImageContext(project(context.text), project(context.image, IMAGE))


class Attention(nn.Module):
  """Multi-head attention with normalised queries and keys.

  Queries and keys are RMS-normalised over all heads together, as in Wan, and
  rotated by their positions if there are RoPE tables.

  Attributes:
    heads: A; the width of x is A * E.
    eps: epsilon of the two norms.
    dtype: dtype of the matrix products.
    zero: initialises the output projection to zero, so that a branch without a
      gate starts as zero.
    kernel: one of attention_plan.KERNELS.
    context_attention: one of attention_plan.CONTEXT_ATTENTION.
  """

  heads: int
  eps: float
  dtype: jnp.dtype
  zero: bool = False
  kernel: str = 'auto'
  context_attention: str = 'auto'

  @nn.compact
  def __call__(
    self,
    x_BND: jax.Array,
    context: Context,
    rope_tables: tuple[jax.Array, jax.Array] | None = None,
    segments: Segments | None = None,
    *,
    keys: str | None = None,
  ) -> jax.Array:
    """Attends from x to a context.

    Args:
      x_BND: query tokens.
      context: key/value tokens (B, S, D), or their KVCache. Of an ImageContext
        the attention to the text and that to the images are added.
      rope_tables: tables of rope.tables; they rotate queries and keys.
      segments: segments of packed sequences.
      keys: 'tokens' if the context is split over devices as x is, None if every
        device has all of it, as of a text.
    """
    width = x_BND.shape[-1]

    q = Dense(width, dtype=self.dtype, name='q')(x_BND)
    q = _split_heads(RMSNorm(self.eps, name='norm_q')(q), self.heads, 'tokens')
    project = functools.partial(
      _project_kv,
      width=width,
      heads=self.heads,
      eps=self.eps,
      dtype=self.dtype,
      axis=keys,
    )
    image = None
    if isinstance(context, ImageContext):
      context, image = context
    if not isinstance(context, KVCache):
      context = project(context)
    k, v = context
    if rope_tables is not None:
      q, k = rope.rotate(q, *rope_tables), rope.rotate(k, *rope_tables)
    # Initialisation needs shapes alone, which no mesh has to divide.
    fresh = self.is_initializing()
    run = functools.partial(
      attend,
      keys=None if fresh else keys,
      kernel='xla' if fresh else self.kernel,
      context_attention=self.context_attention,
    )
    y_BNAE = run(q, k, v, segments)
    if image is not None:
      if not isinstance(image, KVCache):
        image = project(image, mark=IMAGE)
      y_BNAE += run(q, *image, None)
    y_BND = y_BNAE.reshape(x_BND.shape)
    init = nn.initializers.zeros if self.zero else nn.linear.default_kernel_init
    return Dense(width, dtype=self.dtype, kernel_init=init, name='out')(y_BND)
