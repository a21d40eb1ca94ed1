"""The networks against numbers of diffusers 0.42.1 and transformers 5.23.0.

The numbers change only with golden_cases.py: see make_golden.py.
"""

import pathlib

import jax
import numpy as np
import pytest

from spacetime.checkpoint.interop import umt5, wan_transformer, wan_vae
from spacetime.diffusion import schedules, solvers
from spacetime.models import text_encoder
from spacetime.models.autoencoder import wan
from spacetime.models.transformer import dit
from tests.helpers import seeded_weights
from tests.parity import golden_cases

GOLDEN = np.load(pathlib.Path(__file__).with_name('golden.npz'))


def weights(model, interop, *inputs):
  """Seeded weights by the published names, in the model's own tree."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  shapes = shapes.get('params', shapes)
  empty = jax.tree.map(
    lambda s: np.broadcast_to(np.float32(0), s.shape), shapes
  )
  names = interop.torch_names_from_params(empty)
  drawn = seeded_weights.weights({k: v.shape for k, v in names.items()})
  params = interop.params_from_torch_names(drawn)
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
  return params


@pytest.mark.slow
@pytest.mark.parametrize('name', list(golden_cases.AUTOENCODERS))
def test_autoencoder_agrees_with_the_published_code(name):
  config = golden_cases.AUTOENCODERS[name]
  model = wan.WanAutoencoder(config)
  params = weights(model, wan_vae)
  posterior = jax.jit(model.posterior)(params, golden_cases.video(config))
  close(posterior.mean_Bfhwc, GOLDEN[f'{name}_mean'])
  close(posterior.logvar_Bfhwc, GOLDEN[f'{name}_logvar'])
  z_Bfhwc = model.normalise(golden_cases.latents(config))
  decoded = jax.jit(model.decode)(params, z_Bfhwc)
  close(decoded, GOLDEN[f'{name}_video'])


def test_text_agrees_with_the_published_code():
  model = text_encoder.TextEncoder(golden_cases.TEXT)
  tokens = np.array(golden_cases.TOKENS, np.int32)
  encoded = jax.jit(model.encode)(weights(model, umt5), tokens)
  close(encoded, GOLDEN['text'])


def test_transformer_agrees_with_the_published_code():
  model = dit.DiT(golden_cases.TRANSFORMER)
  z_Bfhwc, text_BSY = golden_cases.transformer_inputs()
  inputs = z_Bfhwc, np.float32(golden_cases.TIMESTEPS) / 1000, text_BSY
  params = weights(model, wan_transformer, *inputs)
  velocity = jax.jit(model.apply)({'params': params}, *inputs)
  close(velocity, GOLDEN['transformer'], 2e-5)


@pytest.mark.parametrize('name, published', list(golden_cases.SOLVERS.items()))
def test_solvers_agree_with_the_published_code(name, published):
  for steps, shift in golden_cases.SCHEDULES:
    schedule = getattr(schedules, published)(steps, shift=shift)
    z_Bfhwc = solvers.solve(
      lambda z, t, cache: (golden_cases.velocity(z, t), cache),
      golden_cases.noise(),
      schedule,
      solver=solvers.get(name),
    )
    close(z_Bfhwc, GOLDEN[f'{name}_{steps}'], 1e-6)


def test_names_of_another_model_are_refused():
  with pytest.raises(ValueError, match="tensor 'blocks.0.scale_shift_table'"):
    wan_vae.params_from_torch_names({'blocks.0.scale_shift_table': np.ones(2)})
  with pytest.raises(ValueError, match="'shared.weight' is missing among 1"):
    umt5.params_from_torch_names(
      {'encoder.final_layer_norm.weight': np.ones(2)}
    )


def test_a_tensor_that_no_row_has_is_refused():
  model = text_encoder.TextEncoder(golden_cases.TEXT)
  tensors = umt5.torch_names_from_params(weights(model, umt5))
  with pytest.raises(ValueError, match="tensor 'decoder.x' and 0 more"):
    umt5.params_from_torch_names(tensors | {'decoder.x': np.ones(2)})


def close(ours, theirs, atol=5e-6):
  assert ours.shape == theirs.shape
  assert np.abs(theirs).max() > 0.1
  np.testing.assert_allclose(ours, theirs, atol=atol, rtol=0)
