"""LoRA weights: fresh ones change nothing, merged = beside the kernels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.models.transformer import dit, lora
from tests.helpers.seeded_weights import draw

MODEL = dit.DiTConfig(
  channels=3,
  patch=(1, 2, 2),
  width=24,
  heads=2,
  layers=3,
  mlp=40,
  text_width=12,
  frequencies=16,
)
CONFIG = lora.LoraConfig(rank=4, alpha=6.0)
Z = draw('z', (2, 3, 4, 6, 3))
T = np.array([[0.3, 0.9, 0.0], [0.5, 0.5, 0.1]], np.float32)
TEXT = draw('text', (2, 7, 12))


def random_tree(tree, seed):
  """A tree like a trained one: no zeros that would hide a fault."""
  leaves, shape = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  leaves = [
    0.3 * jax.random.normal(key, leaf.shape)
    for key, leaf in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(shape, leaves)


@pytest.fixture(scope='module')
def params():
  shapes = jax.eval_shape(dit.DiT(MODEL).init, jax.random.key(0), Z, T, TEXT)
  return random_tree(shapes['params'], 1)


def apply(params, adapter, config=CONFIG, key=None, model=MODEL):
  variables = {'params': params}
  if adapter is not None:
    variables['lora'] = lora.variables(adapter, config)
  rngs = {} if key is None else {'dropout': key}
  return jax.jit(
    lambda variables, rngs: dit.DiT(model).apply(
      variables, Z, T, TEXT, rngs=rngs
    )
  )(variables, rngs)


def test_fresh_adapter_changes_nothing(params):
  adapter = lora.init(jax.random.key(0), CONFIG, MODEL)
  np.testing.assert_array_equal(apply(params, adapter), apply(params, None))
  a = adapter['blocks']['mlp_out']['a']
  assert a.shape == (3, 40, 4) and float(jnp.abs(a).max()) <= 40**-0.5
  assert float(a.var()) == pytest.approx(1 / (3 * 40), rel=0.2)


@pytest.mark.parametrize('remat', ['none', 'full'])
@pytest.mark.parametrize(
  'targets', [lora.TARGETS, ('self_attention.v',), ('mlp_out', 'mlp_in')]
)
def test_merge_equals_adapter_beside_kernels(params, targets, remat):
  config = dataclasses.replace(CONFIG, targets=targets)
  adapter = random_tree(lora.init(jax.random.key(0), config, MODEL), 2)
  model = dataclasses.replace(MODEL, remat=remat)
  apart = apply(params, adapter, config, model=model)
  merged = apply(lora.merge(params, adapter, scale=config.scale), None)
  assert float(jnp.abs(apart - apply(params, None)).max()) > 0.1
  unit = float(apart.std())
  np.testing.assert_allclose(apart / unit, merged / unit, atol=1e-5)


def test_every_layer_has_its_own_adapter(params):
  adapter = random_tree(lora.init(jax.random.key(0), CONFIG, MODEL), 2)
  one = jax.tree.map(lambda leaf: leaf.at[1:].set(0), adapter)
  two = jax.tree.map(lambda leaf: leaf.at[:1].set(0), adapter)
  outputs = [apply(params, p) for p in (one, two, adapter)]
  for a, b in ((0, 1), (0, 2), (1, 2)):
    assert float(jnp.abs(outputs[a] - outputs[b]).max()) > 1e-2


def test_merge_keeps_dtype_of_base(params):
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  adapter = random_tree(lora.init(jax.random.key(0), CONFIG, MODEL), 2)
  merged = lora.merge(half, adapter, scale=CONFIG.scale)
  kernel = merged['blocks']['mlp_in']['kernel']
  assert kernel.dtype == jnp.bfloat16
  assert bool(jnp.any(kernel != half['blocks']['mlp_in']['kernel']))


def test_dropout_acts_on_adapter_alone(params):
  config = dataclasses.replace(CONFIG, dropout=0.5)
  fresh = lora.init(jax.random.key(0), config, MODEL)
  key = jax.random.key(3)
  np.testing.assert_array_equal(
    apply(params, fresh, config, key), apply(params, None)
  )
  adapter = random_tree(fresh, 2)
  outputs = [
    apply(params, adapter, config, jax.random.key(i)) for i in (3, 3, 4)
  ]
  np.testing.assert_array_equal(outputs[0], outputs[1])
  assert float(jnp.abs(outputs[0] - outputs[2]).max()) > 1e-2
  # Without a key there is no dropout.
  np.testing.assert_array_equal(
    apply(params, adapter, config), apply(params, adapter, CONFIG)
  )


@pytest.mark.parametrize(
  'values, text',
  [
    ({'rank': -1}, 'lora.rank=-1'),
    ({'alpha': 0.0}, 'lora.alpha=0.0'),
    ({'dropout': 1.0}, 'lora.dropout=1.0'),
    ({'targets': ('q',)}, r"expected some of .*mlp_out.*unknown: \['q'\]"),
    ({'targets': ()}, 'expected some of'),
  ],
)
def test_config_refuses(values, text):
  with pytest.raises(ValueError, match=text):
    dataclasses.replace(CONFIG, **values)


def test_init_refuses_rank_above_kernel():
  config = dataclasses.replace(CONFIG, rank=25)
  with pytest.raises(ValueError, match='lora.rank=25: expected at most 24'):
    lora.init(jax.random.key(0), config, MODEL)
