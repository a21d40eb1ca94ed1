"""Text projected once, and steps that skip blocks, against the whole model."""

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
prepare = jax.jit(kv_cache.prepare, static_argnums=0)
APPLY = jax.jit(MODEL.apply)


@pytest.fixture(scope='module')
def variables():
  """Parameters without a zero, and pairs of LoRA on all kernels."""
  config, rng = lora.LoraConfig(rank=2), np.random.default_rng(0)
  pairs = jax.eval_shape(
    functools.partial(lora.init, config=config, model=CONFIG),
    jax.random.key(0),
  )
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0), Z, T, TEXT)
  params, pairs = jax.tree.map(
    lambda x: np.float32(0.3 * rng.normal(size=x.shape)),
    (shapes['params'], pairs),
  )
  return {'params': params, 'lora': lora.variables(pairs, config)}


def test_a_text_that_is_prepared_is_the_same_text(variables):
  keys = prepare(CONFIG, variables, TEXT)
  assert keys.k.shape == keys.v.shape == (3, 2, 8, 2, 12)
  whole = APPLY(variables, Z, T, TEXT)
  found = APPLY(variables, Z, T, keys)
  np.testing.assert_allclose(found, whole, atol=1e-5)
  # And the pairs are in it.
  plain = prepare(CONFIG, {'params': variables['params']}, TEXT)
  assert np.abs(plain.k - keys.k).max() > 0.01


@functools.partial(jax.jit, static_argnums=3)
def cached(variables, z, memory, threshold, text=TEXT):
  return first_block_cache.predict(
    MODEL, variables, z, T, text, memory, threshold=threshold
  )


@pytest.mark.parametrize('prepared', [False, True])
def test_a_step_is_computed_or_takes_what_the_others_added(variables, prepared):
  text = prepare(CONFIG, variables, TEXT) if prepared else TEXT
  start = first_block_cache.begin(CONFIG, Z.shape)
  y, memory = cached(variables, Z, start, 0.5, text)
  # The first step is whole, and so is every one with no threshold.
  whole = APPLY(variables, Z, T, text)
  np.testing.assert_allclose(y, whole, atol=1e-5)
  near = Z + 1e-3
  exact, again = cached(variables, near, memory, 0.0, text)
  expected = APPLY(variables, near, T, text)
  np.testing.assert_allclose(exact, expected, atol=1e-5)
  assert (again.computed, again.asked) == (2, 2)
  # A near one skips: what the others added is that of the first.
  skipped, after = cached(variables, near, memory, 0.5, text)
  assert (after.computed, after.asked) == (1, 2)
  np.testing.assert_array_equal(after.rest_BND, memory.rest_BND)
  np.testing.assert_array_equal(after.first_BND, memory.first_BND)
  assert 0 < np.abs(skipped - expected).max() < 0.05
  # A far one is computed.
  far, after = cached(variables, -3 * Z, memory, 0.5, text)
  expected = APPLY(variables, -3 * Z, T, text)
  np.testing.assert_allclose(far, expected, atol=1e-5)
  assert after.computed == 2


def test_one_clip_that_changed_computes_the_batch(variables):
  _, memory = cached(
    variables, Z, first_block_cache.begin(CONFIG, Z.shape), 0.1
  )
  one = Z.at[1].multiply(-3.0)
  assert cached(variables, one, memory, 0.1)[1].computed == 2
  assert cached(variables, Z, memory, 0.1)[1].computed == 1


def test_a_step_that_is_skipped_runs_one_block(variables):
  """Not all of them, of which one result is then taken."""
  config = dataclasses.replace(CONFIG, attention='xla')
  model = dit.DiT(config)

  def whole(z, memory):
    return first_block_cache.predict(
      model, variables, z, T, TEXT, memory, threshold=0.5
    )

  jaxpr = jax.make_jaxpr(whole)(Z, first_block_cache.begin(config, Z.shape))
  # Constants are parameters of the program, so conds are at the top.
  conds = [e for e in jaxpr.eqns if e.primitive.name == 'cond']
  (cond,) = conds
  lengths = [
    [e.params['length'] for e in b.eqns if e.primitive.name == 'scan']
    for b in cond.params['branches']
  ]
  assert sorted(lengths) == [[], [CONFIG.layers - 1]]
