"""Guidance: wrappers of predict that combine predictions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Predict = Callable[[jax.Array, jax.Array], jax.Array]


def classifier_free(
  predict_pair: Predict,
  *,
  scale: float,
  interval: tuple[float, float] = (0.0, 1.0),
) -> Predict:
  """v = v_without + scale (v_with - v_without), inside an interval of levels.

  Args:
    predict_pair: velocity of a doubled batch, with text first, without second.
    scale: 1 gives the prediction with text, unguided.
    interval: levels (low, high) at which to guide; outside, scale is 1.

  Returns:
    predict(z_Bfhwc, t) for a single batch.

  Raises:
    ValueError: an interval that is not within [0, 1].

  Source: Ho & Salimans 2022, arXiv 2207.12598, equation 6; the interval is
  Kynkaanniemi et al. 2024, arXiv 2404.07724.
  """
  low, high = interval
  if not 0 <= low < high <= 1:
    raise ValueError(
      f'guidance interval {interval}: expected 0 <= low < high <= 1; change '
      'sampling.interval'
    )

  def predict(z_Bfhwc, t):
    both = predict_pair(jnp.concatenate([z_Bfhwc, z_Bfhwc]), t)
    v_with, v_without = jnp.split(both, 2)
    weight = jnp.where((t >= low) & (t <= high), scale, 1.0)
    return v_without + weight * (v_with - v_without)

  return predict
