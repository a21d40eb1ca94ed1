"""Guidance as a combination of two predictions."""

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


def test_refuses():
  with pytest.raises(ValueError, match='guidance interval .*expected 0 <= low'):
    guidance.classifier_free(pair, scale=2.0, interval=(0.8, 0.2))
