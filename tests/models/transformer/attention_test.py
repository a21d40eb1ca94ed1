"""Every way of attention is the plain one, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import sharding
from spacetime.models.transformer import (
  attention_kernels,
  attention_plan,
  ring,
  splash,
)

N, S, A, E = 16, 24, 8, 6


def inputs(keys, *, rows=2, tokens=N, heads=A):
  """(q, k, v, weights of the result)."""
  shapes = [(rows, n, heads, E) for n in (tokens, keys, keys, tokens)]
  return [
    jax.random.normal(jax.random.key(i), shape)
    for i, shape in enumerate(shapes)
  ]


def padding(keys, rows=2):
  """The last keys are not real: of one row most, so that a device has none."""
  return jnp.arange(keys) < jnp.array([[5], [keys - 3]])[:rows]


def both_ways(call, q, k, v, weights, mask_BS):
  """(y, gradients)."""

  @jax.jit
  def run(q, k, v):
    def loss(q, k, v):
      y = call(q, k, v, mask_BS)
      return jnp.sum(weights * y), y

    return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

  return run(q, k, v)


def assert_same(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@functools.cache
def expected(keys, padded):
  mask_BS = padding(keys) if padded else None
  return both_ways(attention_kernels.plain, *inputs(keys), mask_BS)


def mesh(**sizes):
  return sharding.make_mesh(sharding.MeshConfig(**({'data': 1} | sizes)))


@pytest.mark.parametrize('padded', [False, True], ids=['whole', 'padded'])
@pytest.mark.parametrize(
  'exchange, sizes, way',
  [
    ('ulysses', dict(context=8), (8, 1)),
    ('ring', dict(context=4, fsdp=2), (1, 4)),
    ('both', dict(context=4, tensor=2), (4, 1)),
    ('ring', dict(context=2, tensor=2, data=2), (1, 2)),
  ],
)
def test_exchanges_are_plain_attention(exchange, sizes, way, padded):
  made = mesh(**sizes)
  chosen = attention_plan.choose(
    'xla', exchange, mesh=made, heads=A, head_size=E, dtype='float32'
  )
  assert (chosen.ulysses, chosen.ring) == way
  call = functools.partial(
    attention_plan.attend, keys='tokens', exchange=exchange
  )
  with jax.set_mesh(made):
    mask_BS = padding(N) if padded else None
    got = both_ways(call, *inputs(N), mask_BS)
  assert got[1].sharding.spec[1] == 'context'
  assert_same(got, expected(N, padded))


@pytest.mark.parametrize('padded', [False, True], ids=['whole', 'padded'])
def test_ulysses_and_ring_together_are_plain_attention(padded):
  """Four devices divide the heads, and two groups of them are a ring."""
  made, heads = mesh(context=8), 4
  way = attention_plan.choose(
    'xla', 'auto', mesh=made, heads=heads, head_size=E, dtype='float32'
  )
  assert (way.ulysses, way.ring) == (4, 2)
  mask_BS = padding(N) if padded else None
  arrays = inputs(N, heads=heads)
  with jax.set_mesh(made):
    call = functools.partial(attention_plan.attend, keys='tokens')
    got = both_ways(call, *arrays, mask_BS)
  assert_same(got, both_ways(attention_kernels.plain, *arrays, mask_BS))


@pytest.mark.parametrize('padded', [False, True], ids=['whole', 'padded'])
def test_a_text_is_whole_on_every_device(padded):
  """Cross-attention: queries are split, keys are not, nothing is exchanged."""
  made = mesh(context=4, tensor=2)
  way = attention_plan.Way('xla', 'cpu')
  mask_BS = padding(S) if padded else None
  with jax.set_mesh(made):
    call = attention_plan.on_mesh(
      attention_plan.get_kernel(way), None, keys=None, mesh=made
    )
    got = both_ways(call, *inputs(S), mask_BS)
  assert_same(got, expected(S, padded))


def flash(blocks=None):
  """The TPU's kernel, interpreted."""
  blocks = blocks or splash.Blocks(256, 256, 128, 128, 256, 128)
  options = dict(blocks=blocks, interpret=True)
  return attention_kernels.Kernel(
    functools.partial(splash.attend, **options),
    functools.partial(splash.forward, **options),
    functools.partial(splash.backward, **options),
  )


@pytest.mark.parametrize('padded', [False, True], ids=['whole', 'padded'])
def test_splash_is_plain_attention(padded):
  """Lengths that no block divides, each of several blocks."""
  arrays = inputs(300, rows=2, tokens=270, heads=2)
  mask_BS = padding(300) if padded else None
  got = both_ways(flash().attend, *arrays, mask_BS)
  assert_same(got, both_ways(attention_kernels.plain, *arrays, mask_BS))


def test_a_ring_of_splash_is_plain_attention():
  made = mesh(context=2, fsdp=4)
  arrays = inputs(40, rows=1, tokens=40, heads=1)
  mask_BS = padding(40, rows=1)
  way = attention_plan.Way('splash', 'cpu', ring=2)
  with jax.set_mesh(made):
    call = attention_plan.on_mesh(flash(), way, keys='tokens', mesh=made)
    got = both_ways(call, *arrays, mask_BS)
  assert_same(got, both_ways(attention_kernels.plain, *arrays, mask_BS))


def test_a_row_without_a_key_weighs_nothing_beside_another():
  q, k, v, _ = inputs(4)
  empty = jnp.zeros((2, 4), bool)
  full = attention_kernels.plain_forward(q, k, v)
  joined = ring._join(*full, *attention_kernels.plain_forward(q, k, v, empty))
  assert_same(joined, full)


def test_blocks_fit_the_length():
  assert splash.fit((2048, 1024), 512) == (512, 512)
  assert splash.fit((2048, 1024), 600) == (640, 640)
  assert splash.fit((1024, 512), 75_600) == (1024, 512)
  assert splash.pad_to(75_600, 1024, 512) == 75_776


class Mesh:
  """A mesh of other devices."""

  empty = False

  def __init__(self, platform, **shape):
    kind = jax.sharding.AbstractDevice
    self.shape = dict(data=1, fsdp=1, context=1, tensor=1) | shape
    self.abstract_device = kind(
      device_kind='any', num_cores=None, platform=platform
    )


@pytest.mark.parametrize(
  'platform, dtype, kernel',
  [
    ('cpu', 'bfloat16', 'xla'),
    ('tpu', 'bfloat16', 'splash'),
    ('tpu', 'float32', 'splash'),
    ('gpu', 'bfloat16', 'cudnn'),
    ('gpu', 'float32', 'xla'),
  ],
)
def test_the_platform_chooses_its_kernel(platform, dtype, kernel):
  way = attention_plan.choose(
    'auto', 'auto', mesh=Mesh(platform), heads=2, head_size=64, dtype=dtype
  )
  assert way.kernel == kernel


@pytest.mark.parametrize(
  'kernel, exchange, made, text',
  [
    ('splash', 'auto', Mesh('cpu'), "model.attention='splash' on 'cpu'"),
    ('cudnn', 'auto', Mesh('gpu'), 'heads of 6 in float32: expected at most'),
    ('xla', 'auto', Mesh('cpu', tensor=3), 'mesh.tensor=3 does not divide'),
    (
      'xla',
      'ulysses',
      Mesh('cpu', context=3),
      "'ulysses' with mesh.context=3: expected a divisor of the 8 heads",
    ),
  ],
)
def test_refuses(kernel, exchange, made, text):
  with pytest.raises(ValueError, match=text):
    attention_plan.choose(
      kernel, exchange, mesh=made, heads=A, head_size=E, dtype='float32'
    )


def test_refuses_a_ring_of_a_kernel_that_cannot():
  with pytest.raises(ValueError, match='that kernel has no ring'):
    attention_plan.choose(
      'cudnn',
      'auto',
      mesh=Mesh('gpu', context=3),
      heads=A,
      head_size=64,
      dtype='bfloat16',
    )


def test_refuses_tokens_that_the_mesh_does_not_divide():
  q, k, v, _ = inputs(N)
  with (
    jax.set_mesh(mesh(context=8)),
    pytest.raises(ValueError, match='12 tokens: mesh.context=8 does not'),
  ):
    attention_plan.attend(q[:, :12], k[:, :12], v[:, :12], keys='tokens')
