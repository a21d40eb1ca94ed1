"""GELU: values and slopes of jax.nn.gelu, one residual array."""

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.models import activations

X = np.concatenate([np.linspace(-12, 12, 481), [0.0, -90.0, 90.0]])


def test_gelu_equals_jax_gelu_in_value_and_slope():
  x = X.astype(np.float32)
  np.testing.assert_allclose(
    activations.gelu(x), jax.nn.gelu(x), atol=5e-6, rtol=0
  )
  slope = jax.vmap(jax.grad(activations.gelu))(x)
  expected = jax.vmap(jax.grad(jax.nn.gelu))(x)
  # At -5 jax.nn.gelu's slope is wrong by the rounding of its tanh; this one is
  # not.
  np.testing.assert_allclose(slope, expected, atol=1e-5, rtol=0)
  assert slope.min() < -0.1 and slope.max() > 1.1


def test_gelu_keeps_one_residual_array():
  x = jnp.ones((3, 5))
  residuals = {
    f: sum(leaf.size for leaf in jax.tree.leaves(jax.vjp(f, x)[1]))
    for f in (activations.gelu, jax.nn.gelu)
  }
  assert residuals[activations.gelu] == x.size < residuals[jax.nn.gelu]


def test_gelu_keeps_dtype():
  x = jnp.array([-3.0, 0.5], jnp.bfloat16)
  y, back = jax.vjp(activations.gelu, x)
  assert y.dtype == back(y)[0].dtype == jnp.bfloat16
