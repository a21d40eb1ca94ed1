"""LoRA weights: fresh ones change nothing, merged = beside the kernels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.models.transformer import dit, lora
from tests.helpers import seeded_weights
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


@pytest.fixture(scope='module')
def params():
  shapes = jax.eval_shape(dit.DiT(MODEL).init, jax.random.key(0), Z, T, TEXT)
  return seeded_weights.tree(shapes['params'])


@functools.partial(jax.jit, static_argnames='config')
def fresh_adapter(key, config=CONFIG):
  return lora.init(key, config, MODEL)


def random_adapter(config=CONFIG):
  """LoRA weights like trained ones: no zeros that would hide a fault."""
  make = functools.partial(fresh_adapter, config=config)
  return seeded_weights.tree(jax.eval_shape(make, jax.random.key(0)))


merge = jax.jit(lora.merge)


@functools.partial(jax.jit, static_argnames='model')
def compiled(variables, rngs, *, model):
  return dit.DiT(model).apply(variables, Z, T, TEXT, rngs=rngs)


def apply(params, adapter, config=CONFIG, key=None, model=MODEL):
  variables = {'params': params}
  if adapter is not None:
    variables['lora'] = lora.variables(adapter, config)
  rngs = {} if key is None else {'dropout': key}
  return np.asarray(compiled(variables, rngs, model=model))


@pytest.mark.slow
def test_fresh_adapter_changes_nothing(params):
  adapter = fresh_adapter(jax.random.key(0))
  # Two programs: they may round differently.
  np.testing.assert_allclose(
    apply(params, adapter), apply(params, None), atol=1e-5
  )
  a = adapter['blocks']['mlp_out']['a']
  assert a.shape == (3, 40, 4) and float(jnp.abs(a).max()) <= 40**-0.5
  assert float(a.var()) == pytest.approx(1 / (3 * 40), rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'full'])
@pytest.mark.parametrize(
  'targets', [lora.TARGETS, ('self_attention.v',), ('mlp_out', 'mlp_in')]
)
def test_merge_equals_adapter_beside_kernels(params, targets, remat):
  config = dataclasses.replace(CONFIG, targets=targets)
  adapter = random_adapter(config)
  model = dataclasses.replace(MODEL, remat=remat)
  apart = apply(params, adapter, config, model=model)
  merged = apply(merge(params, adapter, scale=config.scale), None)
  assert np.abs(apart - apply(params, None)).max() > 0.1
  unit = apart.std()
  np.testing.assert_allclose(apart / unit, merged / unit, atol=1e-5)


def test_every_layer_has_its_own_adapter(params):
  adapter = random_adapter()
  first = np.arange(MODEL.layers)[:, None, None] == 0
  one = jax.tree.map(lambda leaf: leaf * first, adapter)
  two = jax.tree.map(lambda leaf: leaf * ~first, adapter)
  outputs = [apply(params, p) for p in (one, two, adapter)]
  for a, b in ((0, 1), (0, 2), (1, 2)):
    assert np.abs(outputs[a] - outputs[b]).max() > 1e-2


def test_merge_keeps_dtype_of_base(params):
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  adapter = random_adapter()
  merged = merge(half, adapter, scale=CONFIG.scale)
  kernel = merged['blocks']['mlp_in']['kernel']
  assert kernel.dtype == jnp.bfloat16
  assert bool(jnp.any(kernel != half['blocks']['mlp_in']['kernel']))


def test_dropout_acts_on_adapter_alone(params):
  config = dataclasses.replace(CONFIG, dropout=0.5)
  fresh = fresh_adapter(jax.random.key(0), config)
  key = jax.random.key(3)
  # Two programs: they may round differently.
  np.testing.assert_allclose(
    apply(params, fresh, config, key), apply(params, None), atol=1e-5
  )
  adapter = random_adapter(config)
  outputs = [
    apply(params, adapter, config, jax.random.key(i)) for i in (3, 3, 4)
  ]
  np.testing.assert_array_equal(outputs[0], outputs[1])
  assert np.abs(outputs[0] - outputs[2]).max() > 1e-2
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
