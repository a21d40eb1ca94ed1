"""Guidance as a combination of two predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import guidance

Z = jnp.arange(6.0).reshape(1, 1, 1, 2, 3)


def pair(z, t):
  """With text: 3 z; without: z."""
  assert z.shape[0] == 2
  return z * jnp.array([3.0, 1.0]).reshape(2, 1, 1, 1, 1)


def test_one_is_the_prediction_with_text_and_zero_without():
  for scale, factor in ((1.0, 3.0), (0.0, 1.0), (2.5, 6.0)):
    predict = guidance.classifier_free(pair, scale=scale)
    np.testing.assert_allclose(predict(Z, jnp.float32(0.5)), factor * Z)


def test_outside_of_the_interval_there_is_no_guidance():
  predict = guidance.classifier_free(pair, scale=2.5, interval=(0.2, 0.8))
  for t, factor in ((0.1, 3.0), (0.5, 6.0), (0.9, 3.0)):
    np.testing.assert_allclose(predict(Z, jnp.float32(t)), factor * Z)


def random_pair(seed=0):
  """Predictions for two clips that depend on nothing; and latents."""
  z, v_with, v_without = jax.random.normal(
    jax.random.key(seed), (3, 2, 3, 4, 5, 6)
  )
  both = jnp.concatenate([v_with, v_without])
  return (lambda z, t: both), z, np.asarray(v_with), np.asarray(v_without)


def flat(x):
  return np.asarray(x, np.float64).reshape(2, -1)


@pytest.mark.parametrize('wrapper', [guidance.zero_star, guidance.projected])
def test_one_or_outside_of_the_interval_is_the_prediction_with_text(wrapper):
  predict_pair, z, v_with, _ = random_pair()
  for scale, interval in ((1.0, (0.0, 1.0)), (4.0, (0.6, 0.8))):
    predict = wrapper(predict_pair, scale=scale, interval=interval)
    np.testing.assert_allclose(predict(z, jnp.float32(0.5)), v_with, atol=1e-6)
  moved = wrapper(predict_pair, scale=4.0)(z, jnp.float32(0.5))
  assert np.abs(moved - v_with).max() > 1


def test_zero_star_starts_from_the_shared_part_of_each_clip():
  predict_pair, z, v_with, v_without = random_pair()
  a, b = flat(v_with), flat(v_without)
  shared = b * (np.sum(a * b, 1) / np.sum(b * b, 1))[:, None]
  predict = guidance.zero_star(predict_pair, scale=3.0)
  expected = shared + 3 * (a - shared)
  found = flat(predict(z, jnp.float32(0.5)))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  # A multiple of the other prediction is no guidance at all.
  predict = guidance.zero_star(
    lambda z, t: jnp.concatenate([v_with, 0.2 * v_with]), scale=3.0
  )
  np.testing.assert_allclose(predict(z, jnp.float32(0.5)), v_with, atol=1e-5)


def test_zero_star_rests_above_a_level():
  predict_pair, z, *_ = random_pair()
  predict = guidance.zero_star(predict_pair, scale=3.0, zero_above=0.96)
  assert np.all(np.asarray(predict(z, jnp.float32(0.97))) == 0)
  assert np.all(np.asarray(predict(z, jnp.float32(0.96))) != 0)


def test_projected_is_plain_guidance_if_nothing_is_taken_away():
  predict_pair, z, *_ = random_pair()
  plain = guidance.classifier_free(predict_pair, scale=3.0)
  predict = guidance.projected(predict_pair, scale=3.0, parallel=1.0)
  t = jnp.float32(0.4)
  np.testing.assert_allclose(predict(z, t), plain(z, t), atol=1e-5)


@pytest.mark.parametrize('parallel', [0.0, 0.3])
def test_projected_weighs_the_part_along_the_sample(parallel):
  predict_pair, z, v_with, v_without = random_pair()
  t = 0.4
  predict = guidance.projected(predict_pair, scale=3.0, parallel=parallel)
  found = flat(z) - t * flat(predict(z, jnp.float32(t)))
  x_with, x_without = flat(z) - t * flat(v_with), flat(z) - t * flat(v_without)
  unit = x_with / np.linalg.norm(x_with, axis=1, keepdims=True)
  along = unit * np.sum((x_with - x_without) * unit, 1, keepdims=True)
  change = x_with - x_without - (1 - parallel) * along
  np.testing.assert_allclose(found, x_with + 2 * change, atol=1e-5)


def test_projected_shortens_to_the_radius():
  predict_pair, z, v_with, _ = random_pair()
  t, radius = 0.4, 1.5
  predict = guidance.projected(
    predict_pair, scale=2.0, parallel=1.0, radius=radius
  )
  change = t * flat(predict(z, jnp.float32(t)) - v_with)
  np.testing.assert_allclose(np.linalg.norm(change, axis=1), radius, rtol=1e-5)
  far = guidance.projected(predict_pair, scale=2.0, radius=1e6)
  free = guidance.projected(predict_pair, scale=2.0)
  t = jnp.float32(t)
  np.testing.assert_array_equal(far(z, t), free(z, t))


def test_projected_leaves_given_frames():
  _, z, v_with, v_without = random_pair()
  given_Bf = jnp.array([[True, False, False], [False, False, True]])
  still = given_Bf[:, :, None, None, None]
  v_with, v_without = (jnp.where(still, 0, v) for v in (v_with, v_without))
  pair = lambda z, t: jnp.concatenate([v_with, v_without])  # noqa: E731
  predict = guidance.projected(pair, scale=3.0, given_Bf=given_Bf)
  t = jnp.float32(0.4)
  found = predict(z, t)
  assert np.all(np.asarray(found)[np.asarray(given_Bf)] == 0)
  other = predict(jnp.where(still, z + 5, z), t)
  np.testing.assert_array_equal(found, other)


def test_refuses():
  for wrapper in (guidance.zero_star, guidance.projected):
    with pytest.raises(ValueError, match='guidance interval .*expected 0 <='):
      wrapper(pair, scale=2.0, interval=(0.8, 0.2))
  with pytest.raises(ValueError, match='guidance radius 0: expected more'):
    guidance.projected(pair, scale=2.0, radius=0)
  with pytest.raises(ValueError, match='guidance interval .*expected 0 <= low'):
    guidance.classifier_free(pair, scale=2.0, interval=(0.8, 0.2))
