"""GELU: the usual values and slopes, one array kept."""

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.models import activations

X = np.concatenate([np.linspace(-12, 12, 481), [0.0, -90.0, 90.0]])


def test_values_and_slopes_are_the_usual():
  x = X.astype(np.float32)
  np.testing.assert_allclose(
    activations.gelu(x), jax.nn.gelu(x), atol=5e-6, rtol=0
  )
  slope = jax.vmap(jax.grad(activations.gelu))(x)
  usual = jax.vmap(jax.grad(jax.nn.gelu))(x)
  # At -5 the usual slope has rounded to 0; this one has not.
  np.testing.assert_allclose(slope, usual, atol=5e-6, rtol=0)
  assert slope.min() < -0.1 and slope.max() > 1.1


def test_one_array_is_kept_for_the_backward_pass():
  x = jnp.ones((3, 5))
  kept = {
    f: sum(leaf.size for leaf in jax.tree.leaves(jax.vjp(f, x)[1]))
    for f in (activations.gelu, jax.nn.gelu)
  }
  assert kept[activations.gelu] == x.size < kept[jax.nn.gelu]


def test_the_dtype_stays():
  x = jnp.array([-3.0, 0.5], jnp.bfloat16)
  y, back = jax.vjp(activations.gelu, x)
  assert y.dtype == back(y)[0].dtype == jnp.bfloat16
