"""Text encoder: invariance to padding, position buckets, parameter counts."""

import dataclasses

import jax
import numpy as np
import pytest

from spacetime.models import networks, text_encoder

TINY = text_encoder.PRESETS['tiny']


@pytest.fixture(scope='module')
def built():
  """A tiny encoder, its parameters and the jitted `encode`."""
  model = text_encoder.TextEncoder(TINY)
  return model, jax.jit(model.init)(jax.random.key(0)), jax.jit(model.encode)


@pytest.mark.slow
def test_encode_ignores_padding(built):
  _, params, encode = built
  tokens = np.array([[5, 9, 30, 1], [7, 1, 0, 0]], np.int32)
  padded = np.pad(tokens, ((0, 0), (0, 3)))
  encoded = encode(params, padded)
  assert encoded.shape == (2, 7, 12) and encoded.dtype == np.float32
  np.testing.assert_array_equal(encoded[0, 4:], 0)
  np.testing.assert_array_equal(encoded[1, 2:], 0)
  assert np.abs(encoded[1, :2]).min() > 0
  np.testing.assert_allclose(encoded[:, :4], encode(params, tokens), atol=1e-5)


def test_encode_depends_on_order_and_both_sides(built):
  _, params, encode = built
  a = encode(params, np.array([[5, 9, 30, 1]], np.int32))
  b = encode(params, np.array([[5, 30, 9, 1]], np.int32))
  assert np.abs(a[0, 0] - b[0, 0]).max() > 1e-4
  assert np.abs(a[0, 3] - b[0, 3]).max() > 1e-4


def test_position_buckets_are_those_of_t5():
  row = text_encoder.position_buckets(200, buckets=32, max_distance=128)[100]
  before, after = row[100::-1], row[100:]
  starts = [int(np.argmax(before == bucket)) for bucket in range(16)]
  assert starts == [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
  np.testing.assert_array_equal(after[1:], 16 + before[1:100])


def test_init_stacks_parameters_over_layers(built):
  _, params, _ = built
  assert params['blocks']['q']['kernel'].shape == (3, 12, 8)
  assert params['blocks']['position_bias'].shape == (3, 32, 2)
  assert params['embed']['embedding'].shape == (37, 12)
  q = params['blocks']['q']['kernel']
  assert np.abs(q[0] - q[1]).max() > 0.01


def test_shared_bias_equals_repeated_layer_bias(built):
  _, params, encode = built
  shared = text_encoder.TextEncoder(dataclasses.replace(TINY, bias='shared'))
  shapes = jax.eval_shape(shared.init, jax.random.key(0))
  assert shapes['position_bias'].shape == (32, 2)
  table = params['blocks']['position_bias'][0]
  blocks = {k: v for k, v in params['blocks'].items() if k != 'position_bias'}
  one = {**params, 'blocks': blocks, 'position_bias': table}
  assert jax.tree.structure(one) == jax.tree.structure(shapes)
  repeated = np.repeat(table[None], 3, axis=0)
  each = {**params, 'blocks': {**blocks, 'position_bias': repeated}}
  tokens = np.array([[5, 9, 30, 11, 1]], np.int32)
  np.testing.assert_allclose(
    jax.jit(shared.encode)(one, tokens), encode(each, tokens), atol=1e-5
  )


def test_bfloat16_returns_bfloat16(built):
  _, params, _ = built
  model = text_encoder.TextEncoder(dataclasses.replace(TINY, dtype='bfloat16'))
  tokens = np.array([[5, 9, 1, 0]], np.int32)
  encoded = jax.eval_shape(model.encode, params, tokens)
  assert encoded.dtype == jax.numpy.bfloat16


@pytest.mark.slow
def test_local_biases_tell_the_order_of_words_from_the_start():
  """Exchanging two far words changes the others more than with normal ones."""
  tokens = np.array([[5, 9, 30, 11, 7, 8, 31, 1]], np.int32)
  swapped = tokens[:, [0, 1, 6, 3, 4, 5, 2, 7]]

  def change(bias_init):
    config = dataclasses.replace(
      text_encoder.PRESETS['digits'], num_layers=1, bias_init=bias_init
    )
    model = text_encoder.TextEncoder(config)
    params = model.init(jax.random.key(0))
    a, b = (model.encode(params, t) for t in (tokens, swapped))
    return float(np.abs(a[0, 1] - b[0, 1]).mean())

  assert change('local') > 4 * change('normal')


def test_local_biases_look_at_one_side():
  after, before, *others = text_encoder.local_biases(32, 4).T
  assert after[17] == before[1] == -1 and after[18] == before[2] == -2
  assert (after[:16] == text_encoder.AWAY).all() and after[0] == before[0]
  assert (before[16:] == text_encoder.AWAY).all() and not np.any(others)


@pytest.mark.parametrize(
  'name, parameters', [('umt5-xxl', 5_680_910_336), ('digits', 394_112)]
)
def test_presets_parameter_count(name, parameters):
  model = text_encoder.TextEncoder(text_encoder.PRESETS[name])
  params = jax.eval_shape(model.init, jax.random.key(0))
  assert networks.num_params(params) == parameters
  assert model.width == text_encoder.PRESETS[name].d_model


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(d_kv=0), 'text.d_kv=0: expected a positive integer'),
    (dict(buckets=30), 'buckets=30: expected a multiple of 4'),
    (dict(max_distance=8), 'max_distance=8: expected more than .* 8'),
    (dict(bias='none'), "bias='none': expected one of"),
    (dict(bias_init='near'), "bias_init='near': expected one of"),
    (dict(dtype='int8'), "dtype='int8': expected float32"),
  ],
)
def test_config_refuses(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **change)
