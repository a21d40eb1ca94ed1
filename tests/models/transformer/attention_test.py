"""Every kernel and context parallelism equals plain attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import sharding
from spacetime.models.transformer import (
  attention_kernels,
  attention_plan,
  blockwise,
  ring,
  splash,
)

N, S, A, E = 16, 24, 8, 6


def inputs(keys, *, rows=2, tokens=N, heads=A):
  """Returns (q, k, v, weights of the result)."""
  shapes = [(rows, n, heads, E) for n in (tokens, keys, keys, tokens)]
  return [
    jax.random.normal(jax.random.key(i), shape)
    for i, shape in enumerate(shapes)
  ]


def padding(keys, rows=2):
  """A mask of padded keys; one row has so few that a device has none."""
  return jnp.arange(keys) < jnp.array([[5], [keys - 3]])[:rows]


def value_and_gradients(call, q, k, v, weights, mask_BS):
  """Returns (gradients, y)."""

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
  return value_and_gradients(attention_kernels.plain, *inputs(keys), mask_BS)


def make_mesh(**sizes):
  return sharding.make_mesh(sharding.MeshConfig(**({'data': 1} | sizes)))


@pytest.mark.slow
@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
@pytest.mark.parametrize(
  'context_attention, sizes, plan',
  [
    ('ulysses', dict(context=8), (8, 1)),
    ('ring', dict(context=4, fsdp=2), (1, 4)),
    ('both', dict(context=4, tensor=2), (4, 1)),
    ('ring', dict(context=2, tensor=2, data=2), (1, 2)),
  ],
)
def test_context_parallelism_equals_plain(
  context_attention, sizes, plan, padded
):
  mesh = make_mesh(**sizes)
  chosen = attention_plan.choose(
    'xla', context_attention, mesh=mesh, heads=A, head_size=E, dtype='float32'
  )
  assert (chosen.ulysses, chosen.ring) == plan
  call = functools.partial(
    attention_plan.attend, keys='tokens', context_attention=context_attention
  )
  with jax.set_mesh(mesh):
    mask_BS = padding(N) if padded else None
    got = value_and_gradients(call, *inputs(N), mask_BS)
  assert got[1].sharding.spec[1] == 'context'
  assert_same(got, expected(N, padded))


@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
def test_ulysses_and_ring_together_equal_plain(padded):
  """Groups of four devices divide the heads, and two groups form a ring."""
  mesh, heads = make_mesh(context=8), 4
  plan = attention_plan.choose(
    'xla', 'auto', mesh=mesh, heads=heads, head_size=E, dtype='float32'
  )
  assert (plan.ulysses, plan.ring) == (4, 2)
  mask_BS = padding(N) if padded else None
  arrays = inputs(N, heads=heads)
  with jax.set_mesh(mesh):
    call = functools.partial(attention_plan.attend, keys='tokens')
    got = value_and_gradients(call, *arrays, mask_BS)
  assert_same(
    got, value_and_gradients(attention_kernels.plain, *arrays, mask_BS)
  )


@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
def test_on_mesh_with_replicated_keys_equals_plain(padded):
  """Cross-attention: queries are split, keys are not."""
  mesh = make_mesh(context=4, tensor=2)
  plan = attention_plan.AttentionPlan('xla', 'cpu')
  mask_BS = padding(S) if padded else None
  with jax.set_mesh(mesh):
    call = attention_plan.on_mesh(
      attention_plan.get_kernel(plan), None, keys=None, mesh=mesh
    )
    got = value_and_gradients(call, *inputs(S), mask_BS)
  assert_same(got, expected(S, padded))


def flash(blocks=None):
  """Returns the TPU kernel, interpreted."""
  blocks = blocks or splash.Blocks(256, 256, 128, 128, 256, 128)
  options = dict(blocks=blocks, interpret=True)
  return attention_kernels.Kernel(
    functools.partial(splash.attend, **options),
    functools.partial(splash.forward, **options),
    functools.partial(splash.backward, **options),
  )


@pytest.mark.slow
@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
def test_splash_equals_plain(padded):
  """The lengths are several blocks, and no multiple of a block."""
  arrays = inputs(300, rows=2, tokens=270, heads=2)
  mask_BS = padding(300) if padded else None
  got = value_and_gradients(flash().attend, *arrays, mask_BS)
  assert_same(
    got, value_and_gradients(attention_kernels.plain, *arrays, mask_BS)
  )


@pytest.mark.slow
def test_ring_of_splash_equals_plain():
  mesh = make_mesh(context=2, fsdp=4)
  arrays = inputs(40, rows=1, tokens=40, heads=1)
  mask_BS = padding(40, rows=1)
  plan = attention_plan.AttentionPlan('splash', 'cpu', ring=2)
  with jax.set_mesh(mesh):
    call = attention_plan.on_mesh(flash(), plan, keys='tokens', mesh=mesh)
    got = value_and_gradients(call, *arrays, mask_BS)
  assert_same(
    got, value_and_gradients(attention_kernels.plain, *arrays, mask_BS)
  )


@pytest.fixture
def always_blocks(monkeypatch):
  """Blocks of 16 queries, however small the logits."""
  monkeypatch.setattr(blockwise, 'SMALL', 0)
  monkeypatch.setattr(blockwise, 'QUERIES', 16)


@pytest.mark.parametrize('tokens', [5, 16, 40], ids='tokens{}'.format)
@pytest.mark.parametrize('mask', ['none', 'padding', 'segments'])
def test_blockwise_equals_plain(always_blocks, mask, tokens):
  """Of less than a block, one block, and no multiple of a block."""
  arrays = inputs(S, tokens=tokens)
  mask_BS = padding(S) if mask == 'padding' else None
  if mask == 'segments':
    mask_BS = attention_kernels.Segments(
      jnp.arange(tokens) // 4 * jnp.array([[1], [0]]) % 3,
      jnp.arange(S) // 3 % 3 * jnp.array([[1], [1]]),
    )
  got = value_and_gradients(blockwise.attend, *arrays, mask_BS)
  assert_same(
    got, value_and_gradients(attention_kernels.plain, *arrays, mask_BS)
  )


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_blockwise_in_half_precision_is_as_near_as_plain(always_blocks, dtype):
  q, k, v, weights = inputs(S, tokens=40)
  want = jax.tree.leaves(
    value_and_gradients(attention_kernels.plain, q, k, v, weights, None)
  )
  half = [x.astype(dtype) for x in (q, k, v)]

  def error(call):
    got = jax.tree.leaves(value_and_gradients(call, *half, weights, None))
    assert {a.dtype for a in got} == {jnp.dtype(dtype)}
    differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), got, want)
    return max(map(float, differences))

  assert error(blockwise.attend) < 1.5 * error(attention_kernels.plain)


def test_blockwise_takes_plain_products_where_the_logits_are_small():
  """And blocks of queries where they are not."""
  for tokens, loops in ((32, 0), (400, 3)):
    q, k, v, _ = inputs(tokens, tokens=tokens)
    text = str(jax.make_jaxpr(blockwise.attend)(q, k, v))
    assert text.count('scan[') == loops


@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
@pytest.mark.parametrize('context_attention', ['ulysses', 'ring'])
def test_blockwise_runs_under_context_parallelism(
  always_blocks, context_attention, padded
):
  mesh = make_mesh(context=2, tensor=2, data=2)
  mask_BS = padding(S) if padded else None
  arrays = inputs(S, tokens=S)
  call = functools.partial(
    attention_plan.attend,
    keys='tokens',
    kernel='blockwise',
    context_attention=context_attention,
  )
  with jax.set_mesh(mesh):
    got = value_and_gradients(call, *arrays, mask_BS)
  assert_same(
    got, value_and_gradients(attention_kernels.plain, *arrays, mask_BS)
  )


def test_join_ignores_a_part_without_keys():
  q, k, v, _ = inputs(4)
  empty = jnp.zeros((2, 4), bool)
  full = attention_kernels.plain_forward(q, k, v)
  joined = ring._join(*full, *attention_kernels.plain_forward(q, k, v, empty))
  assert_same(joined, full)


def test_fit_and_pad_to():
  assert splash.fit((2048, 1024), 512) == (512, 512)
  assert splash.fit((2048, 1024), 600) == (640, 640)
  assert splash.fit((1024, 512), 75_600) == (1024, 512)
  assert splash.pad_to(75_600, 1024, 512) == 75_776


@pytest.mark.parametrize(
  'blocks, length, padded',
  [
    ((1024, 512), 1_040, 1_280),
    ((2048, 1024), 2_100, 2_304),
    ((1024, 1024), 2_100, 2_304),
    ((1024, 1024), 32_760, 32_768),
    ((2048, 1024), 18_480, 20_480),
  ],
)
def test_a_sequence_just_above_a_block_is_not_padded_to_two(
  blocks, length, padded
):
  fitted = splash.fit(blocks, length)
  assert splash.pad_to(length, *fitted) == padded
  assert max(fitted) <= max(blocks) and not any(b % 128 for b in fitted)


class Mesh:
  """A mesh of devices that do not exist."""

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
    ('cpu', 'bfloat16', 'blockwise'),
    ('tpu', 'bfloat16', 'splash'),
    ('tpu', 'float32', 'splash'),
    ('gpu', 'bfloat16', 'cudnn'),
    ('gpu', 'float32', 'xla'),
  ],
)
def test_choose_takes_kernel_of_platform(platform, dtype, kernel):
  plan = attention_plan.choose(
    'auto', 'auto', mesh=Mesh(platform), heads=2, head_size=64, dtype=dtype
  )
  assert plan.kernel == kernel


@pytest.mark.parametrize(
  'kernel, context_attention, mesh, text',
  [
    (
      'splash',
      'auto',
      Mesh('cpu'),
      "model.attention='splash': expected .* on 'cpu'",
    ),
    (
      'cudnn',
      'auto',
      Mesh('gpu'),
      'expected heads of at most 128, .* have 6 in float32',
    ),
    (
      'xla',
      'auto',
      Mesh('cpu', tensor=3),
      'mesh.tensor=3: expected a divisor of .*=8',
    ),
    (
      'xla',
      'ulysses',
      Mesh('cpu', context=3),
      "mesh.context=3: expected a divisor of the 8 heads .*='ulysses'",
    ),
  ],
)
def test_choose_refuses(kernel, context_attention, mesh, text):
  with pytest.raises(ValueError, match=text):
    attention_plan.choose(
      kernel,
      context_attention,
      mesh=mesh,
      heads=A,
      head_size=E,
      dtype='float32',
    )


def test_choose_refuses_ring_of_cudnn():
  with pytest.raises(ValueError, match='cannot run in a ring'):
    attention_plan.choose(
      'cudnn',
      'auto',
      mesh=Mesh('gpu', context=3),
      heads=A,
      head_size=64,
      dtype='bfloat16',
    )


def test_attend_refuses_indivisible_tokens():
  q, k, v, _ = inputs(N)
  with (
    jax.set_mesh(make_mesh(context=8)),
    pytest.raises(
      ValueError, match='mesh.context=8: expected a divisor of the 12 tokens'
    ),
  ):
    attention_plan.attend(q[:, :12], k[:, :12], v[:, :12], keys='tokens')
