"""KV cache of the text, and first-block cache, against the transformer."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from spacetime.models.transformer import dit, first_block_cache, kv_cache, lora
from tests.models.transformer import dit_test

Z, T, TEXT = dit_test.Z, dit_test.T, dit_test.TEXT
CONFIG = dit_test.TINY
MODEL = dit.DiT(CONFIG)
precompute_kv = jax.jit(kv_cache.precompute_kv, static_argnums=0)
APPLY = jax.jit(MODEL.apply)


@pytest.fixture(scope='module')
def variables():
  """Parameters without a zero, and LoRA weights on all kernels."""
  config, rng = lora.LoraConfig(rank=2), np.random.default_rng(0)
  adapter = jax.eval_shape(
    functools.partial(lora.init, config=config, model=CONFIG),
    jax.random.key(0),
  )
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0), Z, T, TEXT)
  params, adapter = jax.tree.map(
    lambda x: np.float32(0.3 * rng.normal(size=x.shape)),
    (shapes['params'], adapter),
  )
  return {'params': params, 'lora': lora.variables(adapter, config)}


@pytest.mark.slow
def test_precompute_kv_changes_no_prediction(variables):
  cache = precompute_kv(CONFIG, variables, TEXT)
  assert cache.k.shape == cache.v.shape == (3, 2, 8, 2, 12)
  expected = APPLY(variables, Z, T, TEXT)
  np.testing.assert_allclose(APPLY(variables, Z, T, cache), expected, atol=1e-5)
  # It includes the LoRA weights.
  plain = precompute_kv(CONFIG, {'params': variables['params']}, TEXT)
  assert np.abs(plain.k - cache.k).max() > 0.01


@functools.partial(jax.jit, static_argnums=3)
def cached(variables, z, cache, threshold, text=TEXT):
  return first_block_cache.predict(
    MODEL, variables, z, T, text, cache, threshold=threshold
  )


@pytest.mark.slow
@pytest.mark.parametrize('precomputed', [False, True])
def test_predict_runs_all_blocks_or_reuses_their_residual(
  variables, precomputed
):
  text = precompute_kv(CONFIG, variables, TEXT) if precomputed else TEXT
  start = first_block_cache.init(CONFIG, Z.shape)
  y, cache = cached(variables, Z, start, 0.5, text)
  # The first step runs all blocks, and so does every one without a threshold.
  np.testing.assert_allclose(y, APPLY(variables, Z, T, text), atol=1e-5)
  near = Z + 1e-3
  exact, again = cached(variables, near, cache, 0.0, text)
  expected = APPLY(variables, near, T, text)
  np.testing.assert_allclose(exact, expected, atol=1e-5)
  assert (again.computed, again.steps) == (2, 2)
  # A close step skips blocks and takes their residual from the first step.
  skipped, after = cached(variables, near, cache, 0.5, text)
  assert (after.computed, after.steps) == (1, 2)
  np.testing.assert_array_equal(after.rest_BND, cache.rest_BND)
  np.testing.assert_array_equal(after.first_BND, cache.first_BND)
  assert 0 < np.abs(skipped - expected).max() < 0.05
  # A distant step runs all blocks.
  far, after = cached(variables, -3 * Z, cache, 0.5, text)
  expected = APPLY(variables, -3 * Z, T, text)
  np.testing.assert_allclose(far, expected, atol=1e-5)
  assert after.computed == 2


def test_one_changed_clip_runs_all_blocks_of_the_batch(variables):
  _, cache = cached(variables, Z, first_block_cache.init(CONFIG, Z.shape), 0.1)
  one = np.concatenate([Z[:1], -3.0 * Z[1:]])
  assert cached(variables, one, cache, 0.1)[1].computed == 2
  assert cached(variables, Z, cache, 0.1)[1].computed == 1


def test_a_skipped_step_runs_one_block(variables):
  """The blocks are in a branch, not computed and discarded."""
  config = dataclasses.replace(CONFIG, attention='xla')
  model = dit.DiT(config)

  def predict(z, cache):
    return first_block_cache.predict(
      model, variables, z, T, TEXT, cache, threshold=0.5
    )

  jaxpr = jax.make_jaxpr(predict)(Z, first_block_cache.init(config, Z.shape))
  # The only cond is at the top level of the program.
  conds = [e for e in jaxpr.eqns if e.primitive.name == 'cond']
  (cond,) = conds
  lengths = [
    [e.params['length'] for e in b.eqns if e.primitive.name == 'scan']
    for b in cond.params['branches']
  ]
  assert sorted(lengths) == [[], [CONFIG.layers - 1]]
