"""A noise level as the transformer takes it: features, then embeddings."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from spacetime.sharding import constrain


class Embedded(NamedTuple):
  """Of each level, float32.

  Attributes:
    head_BTD: what modulates the head.
    block_BT6D: what modulates each block: shift, scale and gate, twice.
  """

  head_BTD: jax.Array
  block_BT6D: jax.Array


def features(t_BT: jax.Array, frequencies: int) -> jax.Array:
  """[cos(1000 t f), sin(1000 t f)] with f = 10000^(-i / half), float32.

  Source: Vaswani et al. 2017, arXiv 1706.03762; cosines first as in Wan.
  """
  half = frequencies // 2
  f = np.exp(-np.log(10000.0) * np.arange(half) / half).astype(np.float32)
  step = 1000.0 * t_BT[..., None].astype(jnp.float32)
  # Wan knows whole thousandths; 1000 * float32(0.511) is not quite 511.
  whole = jnp.round(step)
  step = jnp.where(jnp.abs(step - whole) <= 2e-7 * step, whole, step)
  angle = step * f
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def embed(config: Any, t_BT: jax.Array) -> Embedded:
  """Children time_in, time_out, time_modulation of the module that calls this.

  Args:
    config: of the transformer, a dit.DiTConfig.
    t_BT: levels in [0, 1].
  """
  width, dtype = config.width, jnp.dtype(config.dtype)

  def dense(name, size, dtype, init=nn.linear.default_kernel_init):
    return nn.Dense(size, dtype=dtype, kernel_init=init, name=name)

  # Small at first, as in DiT: the head is modulated by it from the start.
  small, zero = nn.initializers.normal(0.02), nn.initializers.zeros
  features_BTY = features(t_BT, config.frequencies)
  x_BTD = dense('time_in', width, jnp.float32)(features_BTY)
  x_BTD = constrain(x_BTD, 'batch', None, 'width')
  x_BTD = dense('time_out', width, jnp.float32, small)(nn.silu(x_BTD))
  head_BTD = constrain(x_BTD, 'batch', None, 'width')
  modulation = dense('time_modulation', 6 * width, dtype, zero)
  x_BTD = modulation(nn.silu(head_BTD.astype(dtype))).astype(jnp.float32)
  block_BT6D = x_BTD.reshape(*t_BT.shape, 6, width)
  block_BT6D = constrain(block_BT6D, 'batch', None, None, 'width')
  return Embedded(head_BTD, block_BT6D)
