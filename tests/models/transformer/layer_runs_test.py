"""Rows that leave out blocks, against a transformer without these blocks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.models.transformer import (
  dit,
  first_block_cache,
  kv_cache,
  layer_runs,
)
from tests.models.transformer import dit_test
from tests.models.transformer.first_block_cache_test import variables

Z, T, TEXT, CONFIG = dit_test.Z, dit_test.T, dit_test.TEXT, dit_test.TINY
__all__ = ['variables']


@functools.partial(jax.jit, static_argnums=3)
def without(variables, text, skipping_B, layers):
  stack = layer_runs.WithoutLayers(skipping_B, layers)
  return dit.DiT(CONFIG).apply(variables, Z, T, text, stack=stack)


@pytest.mark.slow
@pytest.mark.parametrize('precomputed', [False, True])
@pytest.mark.parametrize('layers', [(1,), (0, 2)])
def test_rows_leave_out_blocks(variables, layers, precomputed):
  text = TEXT
  if precomputed:
    text = jax.jit(kv_cache.precompute_kv, static_argnums=0)(
      CONFIG, variables, TEXT
    )
  rows = len(Z)
  assert rows == 2
  complete = jax.jit(dit.DiT(CONFIG).apply)(variables, Z, T, TEXT)
  none = without(variables, text, jnp.zeros(rows, bool), layers)
  np.testing.assert_allclose(none, complete, atol=1e-5)
  # A transformer that has only the other blocks.
  kept = [i for i in range(CONFIG.layers) if i not in layers]
  fewer = dit.DiT(dataclasses.replace(CONFIG, layers=len(kept)))
  some = {
    name: tree
    | {
      'blocks': jax.tree.map(
        lambda x: jnp.take(x, jnp.array(kept), axis=0), tree['blocks']
      )
    }
    for name, tree in variables.items()
  }
  expected = jax.jit(fewer.apply)(some, Z, T, TEXT)
  assert np.abs(expected - complete).max() > 0.01
  second = without(variables, text, jnp.array([False, True]), layers)
  np.testing.assert_allclose(second[0], complete[0], atol=1e-5)
  np.testing.assert_allclose(second[1], expected[1], atol=1e-5)


@pytest.mark.slow
def test_beside_a_first_block_cache(variables):
  """A step that runs all blocks leaves some out, and a close one reuses what
  the others added."""
  stack = layer_runs.WithoutLayers(np.array([False, True]), (1,))

  @functools.partial(jax.jit, static_argnums=2)
  def cached(z, cache, threshold):
    return first_block_cache.predict(
      dit.DiT(CONFIG),
      variables,
      z,
      T,
      TEXT,
      cache,
      threshold=threshold,
      stack=stack,
    )

  y, cache = cached(Z, first_block_cache.init(CONFIG, Z.shape), 0.5)
  expected = without(variables, TEXT, np.array([False, True]), (1,))
  np.testing.assert_allclose(y, expected, atol=1e-5)
  again, after = cached(Z, cache, 0.5)
  assert (after.computed, after.steps) == (1, 2)
  np.testing.assert_allclose(again, expected, atol=1e-5)
