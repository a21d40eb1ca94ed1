"""Sequence packing: packed = unpacked, clip by clip."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import sharding
from spacetime.data import packing
from spacetime.models.transformer import (
  attention_kernels,
  attention_plan,
  dit,
  packed,
  patchify,
  splash,
)
from spacetime.models.transformer.attention_kernels import PLAIN, Segments
from tests.helpers import seeded_weights
from tests.helpers.seeded_weights import draw

CONFIG = dit.DiTConfig(
  channels=3,
  patch=(1, 2, 2),
  width=24,
  heads=2,
  layers=2,
  mlp=40,
  text_width=7,
  frequencies=10,
  pos_embed_frequencies=3,
)
MODEL = dit.DiT(CONFIG)
# Latent sizes; the second row has two clips and more padding. Each size is a
# program to compile.
SIZES = [[(3, 4, 2), (1, 2, 6), (2, 2, 2)], [(1, 2, 6), (3, 4, 2)]]
ROWS = packing.SequencePacking(length=15, clips=4, frames=7)


@functools.cache
def random_params():
  arrays = (1, 1, 2, 2, 3), (1, 1), (1, 1, 7)
  inputs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in arrays]
  return seeded_weights.tree(
    jax.eval_shape(MODEL.init, jax.random.key(0), *inputs)
  )


def make_batch():
  """Returns clips [(z, t, text)] by sequence, and the packed batch of them."""
  rng = np.random.default_rng(0)
  clips, rows = [], []
  for sizes in SIZES:
    clips.append(
      [
        (
          rng.normal(size=(1, *size, 3)).astype(np.float32),
          rng.uniform(size=(1, size[0])).astype(np.float32),
          rng.normal(size=(1, 5, 7)).astype(np.float32),
        )
        for size in sizes
      ]
    )
    items = [
      {
        'patches': np.asarray(patchify.patchify(z, CONFIG.patch)[0]),
        'grid': np.array([z.shape[1], z.shape[2] // 2, z.shape[3] // 2]),
        'text': text[0],
      }
      for z, _, text in clips[-1]
    ]
    row = packing.collate(items, ROWS)
    row['t'] = rng.uniform(size=7).astype(np.float32)
    level = np.concatenate([t[0] for _, t, _ in clips[-1]])
    row['t'][: len(level)] = level
    # The content of padding must not matter.
    row['patches'][row['segment_ids'] == 0] = 9.0
    rows.append(row)
  return clips, {n: np.stack([row[n] for row in rows]) for n in rows[0]}


def layout(batch):
  return packed.PackedBatch(
    *(
      jnp.asarray(batch[n])
      for n in ('segment_ids', 'positions', 'frame_ids', 'grids')
    )
  )


@functools.partial(jax.jit, static_argnames='model')
def apply_packed(params, batch, model=MODEL):
  arguments = batch['patches'], batch['t'], batch['text'], layout(batch)
  return model.apply(params, *arguments, method=model.predict_packed)


def split_clips(y_BNV, batch):
  """Returns the tokens of every clip, sequence by sequence."""
  return [
    y_NV[ids_N == number]
    for y_NV, ids_N in zip(y_BNV, batch['segment_ids'], strict=True)
    for number in range(1, ids_N.max() + 1)
  ]


@pytest.mark.slow
def test_packed_equals_unpacked_forward_and_gradient():
  clips, batch = make_batch()
  params = random_params()
  weight = lambda y: jnp.sin(3 * y)  # noqa: E731

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def alone(params, z, t, text):
    y = patchify.patchify(MODEL.apply(params, z, t, text), CONFIG.patch)[0]
    return jnp.sum(weight(y)), y

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def together(params):
    y_BNV = apply_packed(params, batch)
    outputs = split_clips(y_BNV, batch)
    return sum(jnp.sum(weight(y)) for y in outputs), outputs

  results = [alone(params, *clip) for row in clips for clip in row]
  expected = [y for (_, y), _ in results]
  expected_gradient = jax.tree.map(
    lambda *leaves: np.sum(leaves, axis=0), *(tree for _, tree in results)
  )
  (_, outputs), gradient = together(params)
  for y, expected_y in zip(outputs, expected, strict=True):
    assert np.abs(expected_y).max() > 0.5
    np.testing.assert_allclose(y, expected_y, atol=1e-5)
  leaves = jax.tree.leaves(expected_gradient)
  size = max(np.abs(g).max() for g in leaves)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * size),
    gradient,
    expected_gradient,
  )


def test_clips_do_not_attend_to_each_other():
  _, batch = make_batch()
  params = random_params()
  before = split_clips(apply_packed(params, batch), batch)
  moved = {name: value.copy() for name, value in batch.items()}
  moved['patches'][0, batch['segment_ids'][0] == 2] += 1
  moved['text'][0, 2] += 1
  moved['t'][1, 0] += 0.1
  after = split_clips(apply_packed(params, moved), moved)
  changed = [bool((a != b).any()) for a, b in zip(before, after, strict=True)]
  assert changed == [False, True, True, True, False]


def test_positions_are_those_of_the_clip_alone():
  _, batch = make_batch()
  tables = layout(batch).rope_tables(head_size=12, theta=50.0)
  cosines = layout(batch).position_cosines(4)
  alone = patchify.positions((3, 2, 1))
  own = batch['segment_ids'][0] == 1
  for table, expected in zip(
    tables, dit.rope.tables(alone, head_size=12, theta=50.0), strict=True
  ):
    np.testing.assert_array_equal(table[0, own], expected)
  expected = patchify.position_cosines((3, 2, 1), 4)
  np.testing.assert_allclose(cosines[0, own], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('text', [False, True])
def test_splash_with_segments_equals_plain(text):
  """The TPU kernel runs interpreted."""
  _, batch = make_batch()
  segments = layout(batch).segments(5)[text]
  lengths = [x.shape[1] for x in segments]
  q, k, v = (draw(name, (2, lengths[name != 'q'], 2, 8)) for name in 'qkv')
  kernel = splash.kernel('TPU v5p', interpret=True)

  def gradients(kernel):
    def loss(q, k, v):
      return jnp.sum(jnp.sin(kernel.attend(q, k, v, segments)))

    return jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)

  for own, expected in zip(gradients(kernel), gradients(PLAIN), strict=True):
    np.testing.assert_allclose(own, expected, atol=1e-5)


def test_packed_on_eight_devices_equals_one():
  _, batch = make_batch()
  params = random_params()
  expected = apply_packed(params, batch)
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, tensor=2, fsdp=2))
  batch = {name: np.concatenate([x, x]) for name, x in batch.items()}
  with jax.set_mesh(mesh):
    put = sharding.put_batch(batch, mesh)
    y = apply_packed(params, put)
  np.testing.assert_allclose(y[:2], expected, atol=1e-5)


def test_segments_refuse_odd_cudnn_and_split_tokens():
  q = jnp.zeros((1, 3, 2, 8))
  segments = Segments(*[jnp.zeros((1, 3), jnp.int32)] * 2)
  with pytest.raises(
    ValueError, match="model.attention='cudnn': expected even numbers .* not 3"
  ):
    attention_plan.attend(q, q, q, segments, kernel='cudnn')
  _, batch = make_batch()
  mesh = sharding.make_mesh(sharding.MeshConfig(context=2))
  with (
    jax.set_mesh(mesh),
    pytest.raises(
      ValueError, match='mesh.context=2: expected 1 with packed sequences'
    ),
  ):
    jax.eval_shape(lambda p: apply_packed(p, batch), random_params())


@pytest.mark.parametrize(
  'platform, lengths, kernel',
  [
    ('gpu', (6, 8), 'auto'),
    ('gpu', (6, 7), 'xla'),
    ('cpu', (6, 7), 'auto'),
  ],
)
def test_check_segments_avoids_cudnn_for_odd_lengths(
  monkeypatch, platform, lengths, kernel
):
  monkeypatch.setattr(
    attention_plan, 'device_of', lambda mesh: (platform, 'any')
  )
  mesh = sharding.single_device_mesh()
  assert attention_plan.check_segments('auto', mesh, lengths=lengths) == kernel


@pytest.mark.parametrize(
  'kernel, platform, lengths, rows, refused',
  [
    ('auto', 'gpu', (1024, 1024), 32, False),  # 64 MiB, twice
    ('auto', 'gpu', (32768, 32768), 1, False),  # 2 GiB, twice
    ('auto', 'gpu', (65536, 65536), 2, True),
    ('cudnn', 'gpu', (65536, 65536), 2, True),
    ('auto', 'tpu', (65536, 65536), 2, False),
    ('auto', 'cpu', (65536, 65536), 2, False),
  ],
)
def test_check_segments_refuses_masks_that_no_gpu_holds(
  monkeypatch, kernel, platform, lengths, rows, refused
):
  monkeypatch.setattr(
    attention_plan, 'device_of', lambda mesh: (platform, 'any')
  )
  mesh = sharding.single_device_mesh()
  call = functools.partial(
    attention_plan.check_segments, kernel, mesh, lengths=lengths, rows=rows
  )
  if not refused:
    assert call() == kernel
    return
  with pytest.raises(ValueError, match='packing.length=65536: .* 32 GiB'):
    call()


def test_packed_bias_is_counted_as_jax_makes_it():
  """Of one row of 32k tokens: 2 GiB, and as much for its gradient."""
  assert attention_kernels.packed_bias_bytes(1, 32768, 32768) == 4 * 2**30


def test_cudnn_receives_segments_as_mask(monkeypatch):
  seen = {}

  def record(q, k, v, *, mask, key_value_seq_lengths, implementation):
    seen.update(mask=mask, lengths=key_value_seq_lengths)
    return jax.nn.dot_product_attention(q, k, v, mask=mask)

  fake_jax = types.SimpleNamespace(
    nn=types.SimpleNamespace(dot_product_attention=record)
  )
  rng = np.random.default_rng(0)
  q, k, v = (rng.normal(size=(2, n, 3, 8)).astype('f') for n in (6, 8, 8))
  segments = Segments(
    jnp.array([[1, 1, 2, 2, 2, 3], [1, 2, 2, 3, 3, 3]]),
    jnp.repeat(jnp.array([[1, 2, 3, 3], [1, 2, 2, 3]]), 2, axis=1),
  )
  expected = attention_kernels.plain(q, k, v, segments)
  real_jax = attention_kernels.jax
  monkeypatch.setattr(attention_kernels, 'jax', fake_jax)
  y = attention_kernels.cudnn(q, k, v, segments)
  monkeypatch.setattr(attention_kernels, 'jax', real_jax)
  assert seen['mask'].shape == (2, 1, 6, 8) and seen['lengths'] is None
  np.testing.assert_allclose(y, expected, atol=1e-5)
