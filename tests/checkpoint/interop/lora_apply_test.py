"""LoRA weights on a model: beside 16-bit kernels, or merged in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.checkpoint.interop import (
  layouts,
  lora_apply,
  lora_changes,
  networks,
)
from spacetime.models.transformer import dit
from tests.helpers import published_folder

MODEL = published_folder.TRANSFORMER
NETWORK = networks.of(MODEL)
RNG = np.random.default_rng(0)
Q = 'blocks.self_attention.q.kernel'


def random(*shape, scale=1.0):
  return np.float32(scale * RNG.normal(size=shape))


def base(dtype=jnp.float32, model=MODEL, scale=0.2):
  tree = {}
  for path, shape in networks.of(model).shapes.items():
    leaf = jnp.asarray(random(*shape, scale=scale), dtype)
    layouts.put(tree, path.split('.'), leaf)
  return tree


def pairs_everywhere(rank=3):
  """Factors of every kernel of the transformer."""
  changes = {}
  for _, path, layer, _ in NETWORK.rows:
    if path.endswith('.kernel') and path != 'patch_embed.kernel':
      shape = NETWORK.shapes[path][-2:]
      down, up = random(rank, shape[0], scale=0.2), random(shape[1], rank)
      changes[path, layer] = [lora_changes.LowRank(down, up, 0.5)]
  down, up = random(rank, 3, 1, 2, 2), random(24, rank)
  changes['patch_embed.kernel', None] = [lora_changes.LowRank(down, up, 0.5)]
  return lora_apply.Adapter(NETWORK, changes)


def predict(tree):
  z = jnp.asarray(np.random.default_rng(1).normal(size=(1, 2, 4, 6, 3)))
  text = jnp.ones((1, 5, 12))
  variables = {'params': tree['dit']}
  if 'lora' in tree:
    variables['lora'] = tree['lora']
  with jax.default_matmul_precision('highest'):
    return dit.DiT(MODEL).apply(variables, z, jnp.float32([[0.5]]), text)


@pytest.mark.slow
def test_beside_is_the_same_as_merged():
  """Every kernel of the transformer takes factors beside it."""
  half = base(jnp.bfloat16)
  exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
  adapters = [(pairs_everywhere(), 0.5), (pairs_everywhere(2), 1.5)]
  beside = lora_apply.apply(half, adapters)
  merged = lora_apply.apply(exact, adapters)
  kernel = beside.params['blocks']['mlp_in']['kernel']
  assert kernel.dtype == jnp.bfloat16 and not merged.lora
  assert beside.lora['head']['a'].shape == (24, 5)
  # The time embedding computes in float32: it is merged.
  assert 'time_in' not in beside.lora
  assert beside.params['time_in']['kernel'].dtype == jnp.float32
  x, y = predict(beside.tree), predict(merged.tree)
  assert np.abs(y - predict({'dit': exact})).max() > 0.1
  np.testing.assert_allclose(x, y, atol=2e-5 * max(1, np.abs(y).max()))


def test_a_small_change_is_not_lost_in_bfloat16():
  """Half of a step of bfloat16 at 0.02 is 6e-5: merged, most of it vanishes."""
  model = dataclasses.replace(MODEL, width=384, heads=3, mlp=512, layers=1)
  network = networks.of(model)
  down = np.float32(RNG.uniform(-1, 1, (16, 384)) / 384**0.5)
  up = random(384, 16, scale=3e-4)
  change = lora_changes.LowRank(down, up, 1.0)
  adapter = lora_apply.Adapter(network, {(Q, 0): [change]})
  half = base(jnp.bfloat16, model, scale=0.02)
  applied = lora_apply.apply(half, [(adapter, 1.0)])
  pair = applied.lora['blocks']['self_attention']['q']
  product = np.asarray(pair['a'][0] @ pair['b'][0])
  np.testing.assert_allclose(product, (up @ down).T, rtol=1e-3, atol=1e-9)
  assert applied.loss == lora_apply.Loss()
  # A change without factors is merged, and the loss is reported.
  dense = lora_changes.Kronecker(np.ones((1, 1), np.float32), up @ down, 1.0)
  adapter = lora_apply.Adapter(network, {(Q, 0): [dense]})
  applied = lora_apply.apply(half, [(adapter, 1.0)])
  assert applied.loss.relative_error == pytest.approx(0.65, abs=0.15)
  assert applied.loss.unchanged / applied.loss.count > 0.5
  assert 'of the weights stay as they are' in str(applied.loss)
  # In float32 it loses nothing.
  wide = lora_apply.apply(half, [(adapter, 1.0)], dtype=jnp.float32)
  kernel = wide.params['blocks']['self_attention']['q']['kernel'][0]
  before = half['blocks']['self_attention']['q']['kernel'][0]
  np.testing.assert_allclose(
    kernel - before.astype(jnp.float32), (up @ down).T, atol=1e-8
  )
  assert wide.loss == lora_apply.Loss()


def test_the_parameters_of_the_caller_stay():
  tree = base(jnp.bfloat16)
  before = jax.tree.map(np.asarray, tree)
  plain = lora_changes.Plain(np.ones(24, np.float32))
  adapter = lora_apply.Adapter(
    NETWORK, {('blocks.self_attention.norm_q.scale', 1): [plain]}
  )
  applied = lora_apply.apply(tree, [(adapter, 2.0)])
  scale = applied.params['blocks']['self_attention']['norm_q']['scale']
  assert scale.dtype == jnp.float32
  old = before['blocks']['self_attention']['norm_q']['scale']
  np.testing.assert_allclose(scale[1], np.float32(old[1]) + 2, atol=1e-6)
  for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(tree), strict=True):
    np.testing.assert_array_equal(a, b)


def test_dora_follows_the_changes_before_it():
  """A kernel of DoRA is merged with everything else that changes it."""
  pair = lora_changes.LowRank(random(3, 24), random(24, 3), 1.0)
  norms = np.abs(random(24))
  dora = lora_changes.Decomposed(pair, norms, 'row')
  first = lora_apply.Adapter(NETWORK, {(Q, 0): [pair]})
  second = lora_apply.Adapter(NETWORK, {(Q, 0): [dora]})
  tree = base()
  applied = lora_apply.apply(tree, [(first, 0.5), (second, 1.0)])
  kernel = np.asarray(tree['blocks']['self_attention']['q']['kernel'][0]).T
  total = kernel + 1.5 * pair.delta()
  expected = norms[:, None] * total / np.linalg.norm(total, axis=1)[:, None]
  result = applied.params['blocks']['self_attention']['q']['kernel'][0]
  np.testing.assert_allclose(result.T, expected, rtol=1e-4, atol=1e-5)
