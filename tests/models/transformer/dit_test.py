"""The diffusion transformer: invariances, and the sizes of Wan's."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.models.transformer import dit
from spacetime.models.transformer.attention_plan import attend
from tests.helpers import published_folder, seeded_weights
from tests.helpers.seeded_weights import draw

TINY = dit.DiTConfig(
  channels=3,
  patch=(1, 2, 2),
  width=24,
  heads=2,
  layers=3,
  mlp=40,
  text_width=7,
  frequencies=10,
)
Z = draw('z', (2, 5, 4, 6, 3))
T = np.random.default_rng(1).uniform(size=(2, 5)).astype(np.float32)
TEXT = draw('text', (2, 8, 7))


@functools.cache
def random_params(config=TINY):
  """Parameters without a zero, so that every path has an effect."""
  return seeded_weights.tree(
    jax.eval_shape(dit.DiT(config).init, jax.random.key(0), Z, T, TEXT)
  )


@functools.partial(jax.jit, static_argnames=('config', 'scaling'))
def compiled(params, z, t, text, t_index_fhw, *, config, scaling):
  return dit.DiT(config, scaling).apply(params, z, t, text, t_index_fhw)


def apply(
  params, z=Z, t=T, text=TEXT, *, config=TINY, scaling=None, t_index_fhw=None
):
  """The prediction, by one program for all of the same shapes."""
  return np.asarray(
    compiled(params, z, t, text, t_index_fhw, config=config, scaling=scaling)
  )


@pytest.mark.parametrize(
  'channels, width, heads, layers, mlp, count',
  [
    (16, 1536, 12, 30, 8960, 1_418_996_800),
    (16, 5120, 40, 40, 13824, 14_288_491_584),
    (48, 3072, 24, 30, 14336, 4_999_787_712),
  ],
)
def test_init_parameter_count_of_wan(
  channels, width, heads, layers, mlp, count
):
  config = dit.DiTConfig(
    channels, (1, 2, 2), width, heads, layers, mlp, text_width=4096
  )
  shapes = jax.eval_shape(
    dit.DiT(config).init,
    jax.random.key(0),
    jnp.zeros((1, 1, 2, 2, channels)),
    jnp.zeros((1, 1)),
    jnp.zeros((1, 1, 4096)),
  )
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.slow
def test_one_timestep_equals_the_same_timestep_per_frame():
  params = random_params()
  one = apply(params, t=np.float32([[0.3], [0.8]]))
  many = apply(params, t=np.float32([[0.3] * 5, [0.8] * 5]))
  np.testing.assert_allclose(one, many, atol=1e-5)


def primitives(jaxpr) -> set[str]:
  """Names of all primitives of a program, of its parts too."""
  names = set()
  for equation in jaxpr.eqns:
    names.add(equation.primitive.name)
    for value in jax.tree.leaves(
      equation.params, is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      value = getattr(value, 'jaxpr', value)
      if hasattr(value, 'eqns'):
        names |= primitives(value)
  return names


def test_one_timestep_is_neither_gathered_nor_scattered():
  """Tables of one row broadcast, in the gradient too."""

  def loss(params, t):
    return jnp.sum(dit.DiT(TINY).apply(params, Z, t, TEXT))

  gradient = jax.make_jaxpr(jax.grad(loss))
  one, each = (
    primitives(gradient(random_params(), t).jaxpr) for t in (T[:, :1], T)
  )
  assert not {'gather', 'scatter-add'} & one
  assert {'gather', 'scatter-add'} <= each


def test_timestep_of_a_frame_changes_it_most_and_others_by_attention():
  params = random_params()
  later = T.copy()
  later[0, 2] += 0.1
  moved = apply(params, t=later)
  difference = np.abs(moved - apply(params)).max(axis=(2, 3, 4))
  assert difference[0].argmax() == 2 and difference[0].min() > 1e-6
  assert np.all(difference[1] == 0)


def test_t_index_sets_timesteps_per_token():
  params = random_params()
  t_index_fhw = np.broadcast_to(np.arange(5)[:, None, None], (5, 4, 6))
  rows = apply(params, t_index_fhw=t_index_fhw)
  np.testing.assert_allclose(rows, apply(params), atol=1e-5)
  # A sixth timestep for one token of frame 2: columns 2 and 3 of rows 0 and 1.
  t = np.concatenate([T, T[:, 2:3] + 0.1], axis=1)
  t_index_fhw = t_index_fhw.copy()
  t_index_fhw[2, :2, 2:4] = 5
  moved = np.abs(apply(params, t=t, t_index_fhw=t_index_fhw) - rows)
  far = moved.max(axis=(0, 4))
  assert far.min() > 1e-6 and np.unravel_index(far.argmax(), far.shape)[0] == 2
  near = far[2, :2, 2:4].max()
  far[2, :2, 2:4] = 0
  assert near > 2 * far.max()


def test_text_changes_its_own_clip_alone():
  params = random_params()
  other = TEXT + np.float32([[[0]], [[1]]])
  moved = apply(params, text=other)
  difference = np.abs(moved - apply(params)).max(axis=(1, 2, 3, 4))
  assert difference[0] == 0 and difference[1] > 1e-4


def test_pos_embed_distinguishes_tokens_that_rope_cannot():
  # All tokens are equal, so only their positions could make them differ.
  z = np.broadcast_to(Z[:, :1, :1, :1], Z.shape)
  one = np.float32([[0.9], [0.9]])
  y = apply(random_params(), z=z, t=one)
  first = y[:, :1, :2, :2]
  again = np.tile(first, (1, 5, 2, 3, 1))
  np.testing.assert_allclose(y, again, atol=2e-5)

  config = dataclasses.replace(TINY, pos_embed_frequencies=3)
  y = apply(random_params(config), z=z, t=one, config=config)
  tokens = y[:, :, ::2, ::2].reshape(2, 30, 3)
  apart = np.abs(tokens[:, :, None] - tokens[:, None]).max((0, 3))
  assert apart[~np.eye(30, dtype=bool)].min() > 1e-3


@pytest.mark.slow
def test_fresh_pos_embed_changes_nothing():
  config = dataclasses.replace(TINY, pos_embed_frequencies=3)
  params = random_params()
  fresh = jax.jit(dit.DiT(config).init)(jax.random.key(0), Z, T, TEXT)
  pos_embed = fresh['params']['pos_embed']
  assert pos_embed['kernel'].shape == (9, 24)
  extended = {'params': params['params'] | {'pos_embed': pos_embed}}
  np.testing.assert_array_equal(apply(extended, config=config), apply(params))


def test_fresh_block_is_identity():
  block = dit.Block(TINY)
  x = draw('x', (2, 6, 24))
  time = np.zeros((2, 1, 6, 24), np.float32)
  inputs = (x, time, draw('text', (2, 8, 24)), None, np.zeros(6, np.int32))
  (y, _), _ = jax.jit(block.init_with_output)(jax.random.key(0), *inputs)
  np.testing.assert_array_equal(y, x)


def test_fresh_transformer_predicts_zero():
  params = jax.jit(dit.DiT(TINY).init)(jax.random.key(0), Z, T, TEXT)
  np.testing.assert_array_equal(apply(params), np.zeros_like(Z))


def test_scan_equals_loop_over_blocks():
  params = random_params()['params']
  captured = {}

  class Loop(dit.DiT):
    def blocks(self, text, *, hints=False):
      def run(x, *args):
        for i in range(TINY.layers):
          layer = jax.tree.map(lambda leaf: leaf[i], params['blocks'])  # noqa: B023
          x, _ = dit.Block(TINY).apply({'params': layer}, x, *args)
        captured['ran'] = True
        return x, None

      return run

  rest = {k: v for k, v in params.items() if k != 'blocks'}
  looped = jax.jit(Loop(TINY).apply)({'params': rest}, Z, T, TEXT)
  np.testing.assert_allclose(apply({'params': params}), looped, atol=1e-5)
  assert captured['ran']


@functools.cache
def gradient(remat):
  config = dataclasses.replace(TINY, remat=remat)

  def loss(params):
    y = dit.DiT(config).apply(params, Z, T, TEXT)
    return jnp.sum(jnp.sin(y))

  return jax.jit(jax.grad(loss))(random_params())


@pytest.mark.slow
@pytest.mark.parametrize('name', ['full', 'attention', 'offload'])
def test_remat_changes_nothing(name):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    gradient('none'),
    gradient(name),
  )


def test_bfloat16_is_close_and_returns_float32():
  params = random_params()
  config = dataclasses.replace(TINY, dtype='bfloat16')
  half, full = apply(params, config=config), apply(params)
  assert half.dtype == np.float32
  assert 0 < np.abs(half - full).max() < 0.1 * np.abs(full).max()


def test_attend_equals_dot_product_attention():
  q, k, v = (
    draw(name, (2, n, 3, 4)) for name, n in (('q', 5), ('k', 7), ('v', 7))
  )
  expected = jax.nn.dot_product_attention(q, k, v)
  np.testing.assert_allclose(attend(q, k, v), expected, atol=1e-5)


def test_timestep_features_have_cosines_first():
  features = dit.timestep_features(jnp.array([[0.0, 0.25]]), 10)
  np.testing.assert_allclose(features[0, 0], [1] * 5 + [0] * 5)
  np.testing.assert_allclose(features[0, 1, 0], np.cos(250.0), atol=1e-4)
  np.testing.assert_allclose(features[0, 1, 5], np.sin(250.0), atol=1e-4)


@pytest.mark.parametrize(
  'values, text',
  [
    ({'heads': 0}, 'model.heads=0: expected 1 or more'),
    ({'layers': -1}, 'model.layers=-1: expected 1 or more'),
    ({'mlp': 0}, 'model.mlp=0: expected 1 or more'),
    ({'theta': -1.0}, 'model.theta=-1.0: expected above 0'),
    ({'theta': math.nan}, 'model.theta=nan: expected above 0'),
    ({'eps': 0.0}, 'model.eps=0.0: expected above 0'),
  ],
)
def test_sizes_out_of_range_are_refused(values, text):
  with pytest.raises(ValueError, match=text):
    dataclasses.replace(published_folder.TRANSFORMER, **values)


def test_refuses():
  with pytest.raises(
    ValueError, match='model.heads=5: expected a divisor of .*=24'
  ):
    dataclasses.replace(TINY, heads=5)
  with pytest.raises(ValueError, match="model.remat='some': expected one of"):
    dataclasses.replace(TINY, remat='some')
  with pytest.raises(ValueError, match="model.attention='flash': expected one"):
    dataclasses.replace(TINY, attention='flash')
  with pytest.raises(ValueError, match="context_attention='tree': expected"):
    dataclasses.replace(TINY, context_attention='tree')
  with pytest.raises(ValueError, match='model.frequencies=5: expected an even'):
    dataclasses.replace(TINY, frequencies=5)
  with pytest.raises(ValueError, match='does not divide'):
    apply(random_params(), z=Z[:, :, :3])
  with pytest.raises(ValueError, match='expected \\(B, 1\\) or \\(B, 5\\)'):
    apply(random_params(), t=T[:, :3])


@pytest.mark.slow
@pytest.mark.parametrize('kind', dit.rope.SCALING_RULES)
def test_rope_scaling_acts_beyond_trained_length(kind):
  params, z = random_params(), np.concatenate([Z, Z[:, ::-1]], axis=1)

  def scaled(trained):
    scaling = dit.rope.Scaling(kind, trained)
    return apply(params, z, T[:, :1], scaling=scaling)

  plain = apply(params, z, T[:, :1])
  np.testing.assert_array_equal(scaled(10), plain)
  assert np.abs(scaled(5) - plain).max() > 1e-3
