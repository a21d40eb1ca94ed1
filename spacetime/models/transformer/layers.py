"""Layers: a dense one that takes a low-rank pair beside its kernel; a norm."""

import flax.linen as nn
import jax
import jax.numpy as jnp

LORA = 'lora'  # the collection of the pairs
DROPOUT = 'dropout'  # the stream of keys


def layer_norm(x: jax.Array, eps: float) -> jax.Array:
  """Zero mean and unit variance over the last axis, float32, no weights."""
  x = x.astype(jnp.float32)
  centred = x - jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + eps)


class Dense(nn.Dense):
  """x W + b, and x A B beside it where the variables hold a pair for it.

  The pair is in the collection 'lora' under the layer's own path: `a` (in, r),
  `b` (r, out), which holds the scale, and `keep`, the share of the inputs that
  the pair sees where a key for dropout is given.
  """

  @nn.compact
  def __call__(self, x):
    y = super().__call__(x)
    if not self.has_variable(LORA, 'a'):
      return y
    a, b = (self.get_variable(LORA, n).astype(y.dtype) for n in ('a', 'b'))
    x = x.astype(y.dtype)
    if self.has_rng(DROPOUT):
      keep = self.get_variable(LORA, 'keep')
      kept = jax.random.bernoulli(self.make_rng(DROPOUT), keep, x.shape)
      x = jnp.where(kept, x / keep.astype(x.dtype), 0)
    return y + (x @ a) @ b
