"""Layers: norms, and a dense layer with LoRA weights beside its kernel."""

import flax.linen as nn
import jax
import jax.numpy as jnp

LORA = 'lora'  # Flax collection of the LoRA weights
DROPOUT = 'dropout'  # Flax stream of keys


def layer_norm(x: jax.Array, eps: float) -> jax.Array:
  """Layer norm over the last axis in float32, without weights."""
  x = x.astype(jnp.float32)
  centred = x - jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + eps)


class RMSNorm(nn.Module):
  """RMS norm over the last axis: x / sqrt(mean(x^2) + eps) * scale.

  The mean is in float32.
  """

  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(mean + self.eps)).astype(x.dtype) * (
      scale.astype(x.dtype)
    )


class Dense(nn.Dense):
  """Dense layer x W + b, plus x A B where the variables have LoRA weights.

  These are in the collection 'lora' under the layer's own path: `a` (in, r),
  `b` (r, out), which includes the scale, and `keep`, the fraction of inputs
  that dropout keeps when there is a key for it.
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
      mask = jax.random.bernoulli(self.make_rng(DROPOUT), keep, x.shape)
      x = jnp.where(mask, x / keep.astype(x.dtype), 0)
    for factor in (a, b):
      x = jnp.matmul(x, factor, precision=self.precision)
    return y + x
