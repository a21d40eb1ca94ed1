"""Video autoencoders: causal, equal in chunks and at once, exact counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.models import networks
from spacetime.models.autoencoder import (
  compact,
  identity,
  layers,
  streaming,
  wan,
)
from tests.helpers.seeded_weights import draw

RESIDUAL = wan.WanAutoencoderConfig(
  base_dim=2,
  decoder_base_dim=4,
  z_dim=3,
  dim_mult=(1, 2, 2),
  num_res_blocks=1,
  temporal_downsample=(True, True),
  is_residual=True,
  patch_size=2,
  latents_mean=(0.5, -1.0, 0.25),
  latents_std=(2.0, 0.5, 1.5),
)
PLAIN = dataclasses.replace(RESIDUAL, is_residual=False, patch_size=1)
COMPACT = compact.CompactConfig(
  z_dim=3,
  patch_size=2,
  encoder_widths=(5, 6),
  encoder_blocks=(1, 2),
  decoder_widths=(7, 8),
  decoder_blocks=(2, 1),
  latents_mean=(0.5, -1.0, 0.25),
  latents_std=(2.0, 0.5, 1.5),
)
CONFIGS = {'residual': RESIDUAL, 'plain': PLAIN, 'compact': COMPACT}


def seeded(config):
  """Parameters drawn without compiling an initialiser."""
  shapes = jax.eval_shape(wan.WanAutoencoder(config).init, jax.random.key(0))

  def fill(path, leaf):
    name = jax.tree_util.keystr(path)
    scale = max(1, int(np.prod(leaf.shape[:-1]))) ** -0.5
    return draw(name, leaf.shape, scale if leaf.ndim > 1 else 0.3)

  return jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def build(form):
  """Returns (model, params, jitted encode, jitted decode), cached."""
  model = wan.WanAutoencoder(CONFIGS[form])
  params = seeded(CONFIGS[form])
  return model, params, jax.jit(model.encode), jax.jit(model.decode)


def clip(model, frames):
  time, height, width = model.stride
  size = 2, frames, height, 2 * width, 3
  return draw('clip', (2, 13, *size[2:]), 0.4).clip(-1, 1)[:, :frames]


@pytest.mark.slow
@pytest.mark.parametrize('form', list(CONFIGS))
def test_chunked_equals_one_clip(form):
  model, params, encode, decode = build(form)
  video = clip(model, 13)
  z = np.concatenate(
    list(
      streaming.encode_chunks(
        model,
        params,
        video,
        first=jax.jit(model.encode_first),
        step=jax.jit(model.encode_step),
      )
    ),
    axis=1,
  )
  decoded = np.concatenate(
    list(
      streaming.decode_chunks(
        model,
        params,
        z,
        first=jax.jit(model.decode_first),
        step=jax.jit(model.decode_step),
      )
    ),
    axis=1,
  )
  assert z.shape == (2, 4, 1, 2, 3) and decoded.shape == video.shape
  # An opening chunk of one frame is a complete clip of one frame.
  for frames in (9, 13):
    latents = 1 + (frames - 1) // 4
    expected = encode(params, video[:, :frames])
    np.testing.assert_allclose(z[:, :latents], expected, atol=1e-5, rtol=0)
    expected = decode(params, z[:, :latents])
    np.testing.assert_allclose(decoded[:, :frames], expected, atol=1e-5, rtol=0)
  assert np.std(decoded) > 0.1 and np.std(z) > 0.1


@pytest.mark.parametrize('form', list(CONFIGS))
def test_encode_and_decode_are_causal(form):
  model, params, encode, decode = build(form)
  video = clip(model, 9)
  other = video.copy()
  other[:, 5:] = -other[:, 5:]
  z, changed = encode(params, video), encode(params, other)
  np.testing.assert_array_equal(z[:, :2], changed[:, :2])
  assert np.abs(z[:, 2] - changed[:, 2]).max() > 1e-3
  changed = decode(params, z.at[:, 2].multiply(-1))
  decoded = decode(params, z)
  np.testing.assert_array_equal(decoded[:, :5], changed[:, :5])
  assert np.abs(decoded[:, 5:] - changed[:, 5:]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('form', list(CONFIGS))
def test_cache_has_fixed_shape(form):
  model = wan.WanAutoencoder(CONFIGS[form])
  params = jax.eval_shape(model.init, jax.random.key(0))
  video = jax.ShapeDtypeStruct((2, 9, 16, 24, 3), jnp.float32)
  cache, z = jax.eval_shape(model.encode_first, params, video)
  step = jax.ShapeDtypeStruct((2, 4, 16, 24, 3), jnp.float32)
  after, _ = jax.eval_shape(model.encode_step, params, cache, step)
  assert cache == after
  assert z.shape == (
    2,
    3,
    *(s // t for s, t in zip((16, 24), model.stride[1:], strict=True)),
    3,
  )
  cache, _ = jax.eval_shape(model.decode_first, params, z)
  frame = jax.ShapeDtypeStruct((2, 1, *z.shape[2:]), jnp.float32)
  after, video = jax.eval_shape(model.decode_step, params, cache, frame)
  assert cache == after
  assert video.shape == (2, 4, 16, 24, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, parameters, stride',
  [
    ('wan2.1', 126_892_531, (4, 8, 8)),
    ('wan2.2', 704_688_668, (4, 16, 16)),
    ('digits', 1_949_516, (4, 8, 8)),
    ('tiny', 45_340, (4, 8, 8)),
  ],
)
def test_presets_parameter_count_and_stride(name, parameters, stride):
  model = wan.WanAutoencoder(wan.PRESETS[name])
  params = jax.eval_shape(model.init, jax.random.key(0))
  assert networks.num_params(params) == parameters
  assert model.stride == stride


@pytest.mark.slow
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('kernel', [(3, 3, 3), (3, 1, 1), (1, 3, 3)])
def test_convolve_forms_agree(kernel, stride):
  x = jnp.array(draw('x', (2, 7, 5, 4, 3)))
  weight = jnp.array(draw('weight', (*kernel, 3, 6), 0.2))
  run = functools.partial(layers.convolve, stride=stride)
  taps = run(x, weight, form='taps')
  assert taps.shape == (2, (7 - kernel[0]) // stride + 1, 5, 4, 6)
  for form in ('native', 'summed', 'auto'):
    np.testing.assert_allclose(taps, run(x, weight, form=form), atol=1e-5)


@pytest.mark.parametrize('channels, form', [(63, 'taps'), (64, 'summed')])
def test_convolve_auto_chooses_by_channels_on_cpu(channels, form):
  x = jax.ShapeDtypeStruct((1, 4, 5, 6, channels), jnp.float32)
  weight = jax.ShapeDtypeStruct((3, 3, 3, channels, 7), jnp.float32)
  lowered = {
    name: str(
      jax.make_jaxpr(functools.partial(layers.convolve, stride=1, form=name))(
        x, weight
      )
    )
    for name in layers.CONV_FORMS
  }
  assert lowered['auto'] == lowered[form]
  assert len(set(lowered.values())) == 3


@pytest.mark.slow
def test_encode_normalises_and_decode_clips():
  model, params, encode, decode = build('residual')
  video = clip(model, 5)
  posterior = jax.jit(model.posterior)(params, video)
  expected = (posterior.mean_Bfhwc - np.array([0.5, -1.0, 0.25])) / np.array(
    [2.0, 0.5, 1.5]
  )
  z = encode(params, video)
  np.testing.assert_allclose(z, expected, atol=1e-6)
  np.testing.assert_allclose(
    model.denormalise(z), posterior.mean_Bfhwc, atol=1e-6
  )
  loud = jax.tree.map(lambda x: 9 * x, params['decoder']['conv_out'])
  params = {**params, 'decoder': {**params['decoder'], 'conv_out': loud}}
  raw = jax.jit(model.decode_unclipped)(params, z)
  assert np.abs(raw).max() > 1
  np.testing.assert_array_equal(decode(params, z), np.clip(raw, -1, 1))
  assert np.all(posterior.logvar_Bfhwc >= -30)
  assert np.all(posterior.logvar_Bfhwc <= 20)


@pytest.mark.slow
def test_init_biases_and_finite_slope():
  config = wan.WanAutoencoderConfig(
    base_dim=4,
    z_dim=2,
    dim_mult=(1,),
    num_res_blocks=1,
    temporal_downsample=(),
    initial_logvar=-6.0,
  )
  model = wan.WanAutoencoder(config)
  params = jax.jit(model.init)(jax.random.key(0))
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
  bias = params['quant_conv']['bias']
  np.testing.assert_allclose(bias, [0.01, 0.01, -5.99, -5.99], atol=1e-6)
  # A norm over exact zeros would have a slope of 1e12.
  slope = jax.jit(jax.grad(lambda x: model.encode(params, x).sum()))(
    jnp.zeros((1, 1, 2, 3, 3))
  )
  assert np.abs(slope).max() < 1e5


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_returns_float32():
  config = dataclasses.replace(RESIDUAL, dtype='bfloat16')
  model = wan.WanAutoencoder(config)
  params = jax.eval_shape(model.init, jax.random.key(0))
  video = jax.ShapeDtypeStruct((1, 5, 8, 16, 3), jnp.float32)
  cache, z = jax.eval_shape(model.encode_first, params, video)
  assert {x.dtype for x in jax.tree.leaves(cache)} == {jnp.bfloat16.dtype}
  assert z.dtype == jnp.float32
  assert jax.eval_shape(model.decode, params, z).dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize('time', [1, 3, 4])
def test_identity_decode_inverts_encode(time):
  model = identity.IdentityAutoencoder(time=time)
  video = draw('clip', (2, 1 + 2 * time, 5, 6, 3), 0.4).clip(-1, 1)
  z = model.encode({}, video)
  assert z.shape == (2, 3, 5, 6, 3 * time) == (2, 3, 5, 6, model.z_dim)
  assert model.stride == (time, 1, 1) and model.init(jax.random.key(0)) == {}
  np.testing.assert_array_equal(model.decode({}, z), video)
  np.testing.assert_array_equal(z[:, 1, ..., :3], video[:, 1])
  np.testing.assert_array_equal(z[:, 1, ..., -3:], video[:, time])
  chunks = list(streaming.encode_chunks(model, {}, video))
  np.testing.assert_array_equal(np.concatenate(chunks, 1), z)
  chunks = list(streaming.decode_chunks(model, {}, z))
  assert [c.shape[1] for c in chunks] == [1, time, time]
  np.testing.assert_array_equal(np.concatenate(chunks, 1), video)


def test_identity_decode_averages_copies_of_first_frame():
  z = draw('z', (1, 1, 2, 3, 12), 0.2)
  video = identity.IdentityAutoencoder(time=4).decode({}, z)
  expected = z.reshape(1, 1, 2, 3, 4, 3).mean(axis=4)
  np.testing.assert_allclose(video, expected, atol=1e-6)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(z_dim=0), 'z_dim=0: expected a positive integer'),
    (dict(temporal_downsample=(True,)), 'expected 2 entries'),
    (dict(latents_mean=(1.0,)), r'latents_mean=\(1.0,\): .*z_dim`=3'),
    (dict(latents_std=(1.0, 0.0, 1.0)), 'expected positive numbers'),
    (dict(conv_form='fft'), "conv_form='fft': expected one of"),
    (dict(dtype='int8'), "dtype='int8': expected float32"),
    (dict(dim_mult=(2, 3, 5)), 'a level of 4 to 6 channels'),
    (dict(decoder_base_dim=3, dim_mult=(5, 1, 7)), 'decoder_base_dim`=3'),
    (
      dict(
        is_residual=False, base_dim=3, decoder_base_dim=3, dim_mult=(1, 1, 1)
      ),
      'a level of 3 to 3 channels',
    ),
  ],
)
def test_config_refuses(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(RESIDUAL, **change)


@pytest.mark.parametrize(
  'call, size, message',
  [
    ('encode', (1, 4, 8, 8, 3), 'a chunk of 4 frames: expected 4k[+]1'),
    ('encode', (1, 5, 12, 8, 3), '12 x 8 pixels: expected multiples of 8 x 8'),
    ('encode', (5, 8, 8, 3), 'expected .B, F, H, W, 3.'),
    ('encode_first', (1, 0, 8, 8, 3), 'a chunk of 0 frames'),
    ('encode_step', (1, 5, 8, 8, 3), 'a chunk of 5 frames: expected 4k;'),
    ('encode_step', (1, 0, 8, 8, 3), 'a chunk of 0 frames: expected 4k; k at'),
    ('decode', (1, 2, 1, 1, 4), 'autoencoder.z_dim=3'),
    ('decode_first', (1, 2, 1, 3), 'expected .B, f, h, w, 3.'),
  ],
)
def test_calls_refuse_arrays(call, size, message):
  model = wan.WanAutoencoder(RESIDUAL)
  cache = ({},) if call.endswith('step') else ()
  with pytest.raises(ValueError, match=message):
    getattr(model, call)({}, *cache, np.zeros(size, np.float32))


def test_identity_refuses():
  with pytest.raises(ValueError, match='time=0: expected a positive integer'):
    identity.IdentityAutoencoder(time=0)
  model = identity.IdentityAutoencoder(time=4)
  with pytest.raises(ValueError, match='autoencoder.time=4'):
    model.decode({}, np.zeros((1, 2, 1, 1, 9), np.float32))
  with pytest.raises(ValueError, match='a chunk of 4 frames'):
    model.encode({}, np.zeros((1, 4, 1, 1, 3), np.float32))


def test_shortcuts_average_and_repeat():
  x = draw('x', (2, 3, 4, 6, 5))
  down = functools.partial(layers.average_down, time=2, space=2)
  y = down(x, features=10, opens=True)
  assert y.shape == (2, 2, 2, 3, 10)
  # Channel 0 is the first half of channel 0's fold: here the zero frame.
  np.testing.assert_allclose(y[:, 0, ..., ::2], 0)
  expected = x[:, 1, :2, 2:4, 3].mean(axis=(1, 2))
  np.testing.assert_allclose(y[:, 1, 0, 1, 6], expected, atol=1e-6)
  y = down(x[:, 1:], features=5, opens=False)
  np.testing.assert_allclose(
    y[:, 0, 1, 2], x[:, 1:, 2:, 4:].mean(axis=(1, 2, 3)), atol=1e-6
  )
  wide = layers.average_down(x, features=15, time=1, space=1, opens=False)
  np.testing.assert_array_equal(wide, np.repeat(x, 3, axis=-1))
  up = functools.partial(layers.repeat_up, time=2, space=2)
  y = up(x, features=5, opens=False)
  assert y.shape == (2, 6, 8, 12, 5)
  np.testing.assert_array_equal(y[:, ::2, ::2, ::2], x)
  np.testing.assert_array_equal(y[:, 1::2, 1::2, 1::2], x)
  np.testing.assert_array_equal(up(x, features=5, opens=True), y[:, 1:])
