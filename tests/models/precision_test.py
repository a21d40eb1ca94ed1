"""Precision of products: in the text that every compiler is given."""

import re

import jax
import jax.numpy as jnp
import pytest

from experiments import digits_pixels
from spacetime.config import networks, parse
from spacetime.models import precision
from spacetime.models.autoencoder import wan
from spacetime.models.text_encoder import TextConfig, TextEncoder
from spacetime.models.transformer import attention_kernels, ring


@pytest.fixture(autouse=True)
def _no_default():
  # The other tests run at the highest precision, whatever a network asks for.
  with jax.default_matmul_precision(None):
    yield


PRODUCT = re.compile(r'stablehlo\.(dot_general|convolution)\b.*')


def products(function, *arguments, attention=True):
  """[(names of the precisions, dtype of the operands)] of a program."""
  text = jax.jit(function).lower(*arguments).as_text()
  result = []
  for match in PRODUCT.finditer(text):
    if 'batching_dims' in match[0] and not attention:
      continue
    names = set(re.findall(r'\b(DEFAULT|HIGHEST|HIGH)\b', match[0]))
    dtype = re.search(r': \(tensor<[\dx]*x(\w+)>', match[0])[1]
    result.append((names or {'DEFAULT'}, dtype))
  assert result
  return result


def experiment(dtype):
  config = digits_pixels.get_config('tiny')
  config.model.dtype = dtype
  return parse.experiment(config)


def predict(dtype):
  """(the loss of a prediction, its parameters) of a small transformer."""
  nets = networks.networks(experiment(dtype))
  params = jax.eval_shape(nets.init, jax.random.key(0))
  _, height, width = nets.dit.config.patch
  latent = 1, 2, 2 * height, 2 * width, nets.autoencoder.z_dim

  def loss(params):
    text = jnp.ones((1, 3, nets.dit.config.text_width))
    t_BT = jnp.full((1, 2), 0.3)
    return nets.transform(params, jnp.ones(latent), t_BT, text).sum()

  return loss, params


@pytest.mark.slow
def test_time_embedding_of_a_bfloat16_model_is_float32():
  loss, params = predict('bfloat16')
  for function in (loss, jax.grad(loss)):
    listed = products(function, params, attention=False)
    assert ({'HIGHEST'}, 'f32') in listed
    assert all(
      names == {'HIGHEST'} for names, dtype in listed if dtype == 'f32'
    )
    assert any(dtype == 'bf16' for _, dtype in listed)


def test_every_product_of_a_float32_model_is_float32():
  loss, params = predict('float32')
  for function in (loss, jax.grad(loss)):
    assert set(map(str, products(function, params))) == {
      str(({'HIGHEST'}, 'f32'))
    }


def text_encoder(dtype):
  config = TextConfig(
    vocab_size=8,
    d_model=8,
    d_kv=4,
    d_ff=12,
    num_layers=2,
    num_heads=2,
    dtype=dtype,
  )
  encoder = TextEncoder(config)
  params = jax.eval_shape(encoder.init, jax.random.key(0))
  return encoder.encode, params, jnp.ones((1, 5), jnp.int32)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_float32_products_of_the_text_encoder(dtype):
  listed = products(*text_encoder(dtype))
  assert all(names == {'HIGHEST'} for names, kind in listed if kind == 'f32')


@pytest.mark.slow
@pytest.mark.parametrize(
  'dtype, expected', [('float32', 'HIGH'), ('bfloat16', 'DEFAULT')]
)
@pytest.mark.parametrize('method', ['encode', 'decode'])
def test_an_autoencoder_in_float32_takes_three_passes(dtype, expected, method):
  config = wan.WanAutoencoderConfig(
    base_dim=4,
    z_dim=3,
    dim_mult=(1, 2),
    num_res_blocks=1,
    temporal_downsample=(True,),
    dtype=dtype,
  )
  autoencoder = wan.WanAutoencoder(config)
  params = jax.eval_shape(autoencoder.init, jax.random.key(0))
  shape = (1, 3, 4, 4, 3) if method == 'encode' else (1, 2, 2, 2, 3)
  listed = products(getattr(autoencoder, method), params, jnp.ones(shape))
  assert {name for names, _ in listed for name in names} == {expected}


def test_a_ring_has_its_precision_in_the_backward_pass_too():
  x = jnp.ones((1, 4, 2, 8))

  def loss(x):
    with precision.products(x.dtype):
      y = ring.attend(
        x, x, x, None, attention_kernels.PLAIN, ring.Ring('context', 1)
      )
    return y.sum()

  listed = products(jax.grad(loss), x)
  assert {str(names) for names, _ in listed} == {"{'HIGHEST'}"}
