"""Encoding and decoding on several devices equal those on one."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.models.autoencoder import identity, streaming, wan
from spacetime.pipeline import decode_shards
from tests.helpers.seeded_weights import draw

PLAIN = wan.WanAutoencoderConfig(
  base_dim=4,
  z_dim=3,
  dim_mult=(1, 2, 2),
  num_res_blocks=1,
  temporal_downsample=(False, True),
)
CONFIGS = {
  '2.1': PLAIN,
  '2.2': dataclasses.replace(
    PLAIN, decoder_base_dim=8, is_residual=True, patch_size=2
  ),
}
LATENT = 8, 12


@functools.cache
def build(form):
  """(model, params)."""
  model = wan.WanAutoencoder(CONFIGS[form])
  shapes = jax.eval_shape(model.init, jax.random.key(0))

  def fill(path, leaf):
    name = jax.tree_util.keystr(path)
    scale = max(1, math.prod(leaf.shape[:-1])) ** -0.5
    return draw(name, leaf.shape, scale if leaf.ndim > 1 else 0.3)

  return model, jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def example(form, function):
  """(input, what one device makes of it whole)."""
  model, params = build(form)
  _, height, width = model.stride
  if function == 'decode':
    x = draw('z', (2, 3, *LATENT, model.z_dim))
  else:
    size = 2, 5, height * LATENT[0], width * LATENT[1], 3
    x = draw('clip', size, 0.4).clip(-1, 1)
  return x, np.asarray(jax.jit(getattr(model, function))(params, x))


@pytest.mark.slow
@pytest.mark.parametrize('function', ['decode', 'encode'])
@pytest.mark.parametrize('form', list(CONFIGS))
@pytest.mark.parametrize('side, count', [('height', 4), ('width', 2)])
def test_split_equals_one_device(form, function, side, count):
  model, params = build(form)
  x, expected = example(form, function)
  make = {'decode': decode_shards.decoder, 'encode': decode_shards.encoder}[
    function
  ]
  coder = make(model, params, jax.devices()[:count], latent=LATENT, side=side)
  run = {
    'decode': streaming.decode_chunks,
    'encode': streaming.encode_chunks,
  }[function]
  chunks = list(run(model, coder.params, x, first=coder.first, step=coder.step))
  axis = decode_shards.SIDES[side]
  for chunk in chunks:
    assert len(chunk.sharding.device_set) == count
    part = chunk.addressable_shards[0].data.shape
    assert part[axis] * count == chunk.shape[axis]
  actual = np.concatenate([np.asarray(chunk) for chunk in chunks], axis=1)
  assert np.std(expected) > 0.1
  np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


def arrays(text):
  """Elements of the largest array that a program names."""
  shapes = re.findall(r'f32\[([\d,]+)\]', text)
  return max(math.prod(map(int, s.split(','))) for s in shapes)


@pytest.mark.slow
@pytest.mark.parametrize('form', list(CONFIGS))
def test_no_device_holds_a_complete_activation(form):
  model, params = build(form)
  latent, count = (16, 64), 4
  coder = decode_shards.decoder(
    model, params, jax.devices()[:count], latent=latent, side='height'
  )
  z = jax.ShapeDtypeStruct((1, 1, *latent, model.z_dim), jnp.float32)
  cache, _ = jax.eval_shape(model.decode_first, params, z)
  split = coder.step.lower(params, cache, z).compile()
  alone = jax.jit(model.decode_step, donate_argnums=1)
  alone = alone.lower(params, cache, z).compile()
  text = split.as_text()
  # Rows of the neighbours come on top of a device's own: two of sixteen.
  assert arrays(text) < 1.3 * arrays(alone.as_text()) / count
  memory = (each.memory_analysis() for each in (split, alone))
  temporary, full = (each.temp_size_in_bytes for each in memory)
  assert temporary < 1.25 * full / count
  gathered = re.findall(r'= f32\[([\d,]+)\]\S* all-gather', text)
  channels = params['decoder']['mid_block']['attentions_0']['norm']['gamma']
  frame = math.prod(latent) * channels.size
  sizes = [math.prod(map(int, s.split(','))) for s in gathered]
  assert sizes and max(sizes) <= frame
  assert text.count(' collective-permute(') > 10


def test_a_side_is_chosen():
  assert decode_shards.choose_side((90, 160), 5) == 'height'
  assert decode_shards.choose_side((90, 160), 4) == 'width'
  model = identity.IdentityAutoencoder(time=2)
  coder = decode_shards.decoder(model, {}, jax.devices()[:4], latent=(6, 8))
  assert coder.side == 'width'
  z = draw('z', (1, 3, 6, 8, 6))
  chunks = streaming.decode_chunks(
    model, coder.params, z, first=coder.first, step=coder.step
  )
  actual = np.concatenate([np.asarray(chunk) for chunk in chunks], axis=1)
  np.testing.assert_array_equal(actual, model.decode({}, z))


def test_sizes_that_do_not_divide_are_refused():
  model, params = build('2.1')
  make = functools.partial(decode_shards.decoder, model, params)
  with pytest.raises(ValueError, match='9 x 10 cells over 4 devices.*shards'):
    make(jax.devices()[:4], latent=(9, 10))
  with pytest.raises(ValueError, match='a height of 9 latent cells over 2'):
    make(jax.devices()[:2], latent=(9, 10), side='height')
  with pytest.raises(ValueError, match="side='depth': expected one of"):
    make(jax.devices()[:2], latent=(9, 10), side='depth')
