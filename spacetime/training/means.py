"""Means that know what they count, so that parts of a batch combine exactly.

The mean of the means of parts is not the mean of the whole where parts count
differently many frames or tokens. So a loss returns its mean with its weight.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
  """A mean over some items.

  Attributes:
    value: float32 scalar; 0 of no items.
    weight: float32 scalar, the number of items, such as frames to predict.
  """

  value: jax.Array
  weight: jax.Array | float

  @property
  def total(self) -> 'Total':
    """The sum over the items, which adds up over parts."""
    weight = jnp.asarray(self.weight, jnp.float32)
    return Total(self.value * weight, weight)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Total:
  """A sum over some items, and their weight."""

  value: jax.Array
  weight: jax.Array

  @property
  def mean(self) -> jax.Array:
    """The mean; 0 of no items."""
    return self.value / divisor(self.weight)


def divisor(weight: jax.Array) -> jax.Array:
  """A weight to divide by: 1 in place of 0."""
  return jnp.where(weight > 0, weight, 1.0)


def values(means: Mapping[str, Mean]) -> dict[str, jax.Array]:
  """The values of some means, by name."""
  return {name: mean.value for name, mean in means.items()}


def over_clips(value_B: jax.Array, counted_B: jax.Array | None) -> jax.Array:
  """The mean over clips, of which some may be there to fill a batch.

  Args:
    value_B: a value of each clip.
    counted_B: 1 for clips that count and 0 for others; None counts all.
  """
  if counted_B is None:
    return jnp.mean(value_B)
  return jnp.sum(value_B * counted_B) / divisor(jnp.sum(counted_B))
