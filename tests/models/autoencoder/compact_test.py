"""The compact autoencoder: start, sizes, refusals; its laws are tested with
those of the others, in autoencoder_test.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.models.autoencoder import compact, wan

CONFIG = compact.CompactConfig(
  z_dim=3,
  patch_size=2,
  time=4,
  encoder_widths=(5, 6),
  encoder_blocks=(1, 2),
  decoder_widths=(7, 8),
  decoder_blocks=(2, 1),
  latents_mean=(0.5, -1.0, 0.25),
  latents_std=(2.0, 0.5, 1.5),
)


@pytest.mark.slow
def test_it_starts_as_it_should():
  config = dataclasses.replace(CONFIG, latents_mean=(), latents_std=())
  model = wan.WanAutoencoder(config)
  params = jax.jit(model.init)(jax.random.key(0))
  bias = params['encoder']['conv_out']['bias']
  np.testing.assert_allclose(bias, [0.01] * 3 + [-3.99] * 3, atol=1e-6)
  # A norm over exact zeros would have a slope of 1e12.
  slope = jax.jit(jax.grad(lambda x: model.encode(params, x).sum()))(
    jnp.zeros((1, 1, 4, 4, 3))
  )
  assert 0 < np.abs(slope).max() < 1e5


def test_parameters_of_the_default_size():
  model = wan.WanAutoencoder(compact.CompactConfig())
  params = jax.eval_shape(model.init, jax.random.key(0))
  sizes = [np.prod(x.shape) for x in jax.tree.leaves(params)]
  assert sum(sizes) == 1_971_712
  assert model.stride == (4, 8, 8) and model.z_dim == 16


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(z_dim=0), 'z_dim=0: expected a positive integer'),
    (dict(decoder_blocks=(1,)), 'decoder_blocks=.*one entry for each of'),
    (dict(encoder_widths=(), encoder_blocks=()), 'encoder_blocks=.*one entry'),
    (dict(latents_mean=(1.0,)), 'latents_mean=.*none or z_dim=3 entries'),
    (dict(latents_std=(1.0, 0.0, 1.0)), 'expected positive numbers'),
    (dict(dtype='int8'), "dtype='int8': expected float32"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **change)
