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
  check_interval(interval)

  def predict(z_Bfhwc, t):
    v_with, v_without = _pair(predict_pair, z_Bfhwc, t)
    weight = _weight(t, scale, interval)
    return v_without + weight * (v_with - v_without)

  return predict


def zero_star(
  predict_pair: Predict,
  *,
  scale: float,
  interval: tuple[float, float] = (0.0, 1.0),
  zero_above: float = 1.0,
) -> Predict:
  """Classifier-free guidance from the part of v_without that v_with shares.

  v = s v_without + scale (v_with - s v_without), where s v_without is the
  projection of v_with on v_without, for each clip.

  Args:
    predict_pair: as of classifier_free.
    scale: 1 gives the prediction with text, unguided.
    interval: as of classifier_free.
    zero_above: at levels above this the velocity is zero: the first steps,
      where a prediction is worse than none; 1 leaves it out.

  Returns:
    predict(z_Bfhwc, t) for a single batch.

  Raises:
    ValueError: an interval that is not within [0, 1].

  Source: Fan et al. 2025 (CFG-Zero*), arXiv 2503.18886.
  """
  check_interval(interval)

  def predict(z_Bfhwc, t):
    v_with, v_without = _pair(predict_pair, z_Bfhwc, t)
    v_without = _projection(v_with, v_without)
    weight = _weight(t, scale, interval)
    v_Bfhwc = v_without + weight * (v_with - v_without)
    return jnp.where(t > zero_above, 0.0, v_Bfhwc)

  return predict


def projected(
  predict_pair: Predict,
  *,
  scale: float,
  interval: tuple[float, float] = (0.0, 1.0),
  parallel: float = 0.0,
  radius: float = float('inf'),
  given_Bf: jax.Array | None = None,
) -> Predict:
  """Adaptive projected guidance, without momentum: less colour burnt in.

  Of the difference that the text makes to the predicted sample, the part
  along the sample itself, which saturates it, is weighed by `parallel`.

  Args:
    predict_pair: as of classifier_free.
    scale: 1 gives the prediction with text, unguided.
    interval: as of classifier_free.
    parallel: weight of the part along the sample; 1 and no radius are plain
      classifier-free guidance.
    radius: a longer difference (its Euclidean norm in a clip) is shortened
      to this.
    given_Bf: latent frames that are given, bool: no part of the direction, and
      left as they are.

  Returns:
    predict(z_Bfhwc, t) for a single batch.

  Raises:
    ValueError: an interval that is not within [0, 1], or a radius that is not
      positive.

  Source: Sadat et al. 2024 (APG), arXiv 2410.02416, with beta = 0.
  """
  check_interval(interval)
  if not radius > 0:
    raise ValueError(
      f'guidance radius {radius}: expected more than 0; inf shortens nothing'
    )

  def predict(z_Bfhwc, t):
    v_with, v_without = _pair(predict_pair, z_Bfhwc, t)
    sample = z_Bfhwc - t * v_with
    if given_Bf is not None:
      sample = jnp.where(given_Bf[:, :, None, None, None], 0.0, sample)
    # Of samples it is this times -t: as velocities there is no division by t.
    change = v_with - v_without
    length = t * jnp.sqrt(_dot(change, change))
    change = change / jnp.maximum(length / radius, 1.0)
    change = change - (1 - parallel) * _projection(change, sample)
    return v_with + (_weight(t, scale, interval) - 1) * change

  return predict


def check_interval(interval: tuple[float, float]) -> None:
  """Raises ValueError unless 0 <= low < high <= 1."""
  low, high = interval
  if not 0 <= low < high <= 1:
    raise ValueError(
      f'guidance interval {interval}: expected 0 <= low < high <= 1; change '
      'sampling.interval'
    )


def _pair(predict_pair: Predict, z_Bfhwc, t):
  return jnp.split(predict_pair(jnp.concatenate([z_Bfhwc, z_Bfhwc]), t), 2)


def _weight(t, scale: float, interval: tuple[float, float]):
  low, high = interval
  return jnp.where((t >= low) & (t <= high), scale, 1.0)


def _dot(a_Bfhwc, b_Bfhwc):
  """Inner product of each clip, (B, 1, 1, 1, 1)."""
  return jnp.sum(a_Bfhwc * b_Bfhwc, axis=(1, 2, 3, 4), keepdims=True)


def _projection(a_Bfhwc, b_Bfhwc):
  """The part of each clip of a along that of b; zero where b is zero."""
  square = _dot(b_Bfhwc, b_Bfhwc)
  return b_Bfhwc * _dot(a_Bfhwc, b_Bfhwc) / jnp.where(square > 0, square, 1.0)
