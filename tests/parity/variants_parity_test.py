"""Image-to-video, VACE and flow-map transformers and CLIP against diffusers and
transformers, live, on random small instances."""

import jax
import numpy as np
import pytest

from spacetime.checkpoint.interop import (
  clip,
  layouts,
  networks,
  wan_transformer,
)
from spacetime.models import image_encoder
from spacetime.models.transformer import dit, first_block_cache, kv_cache
from spacetime.models.transformer.attention import ImageContext

pytestmark = pytest.mark.parity

BASE = dict(
  patch=(1, 2, 2),
  channels=4,
  width=24,
  heads=2,
  layers=3,
  mlp=40,
  text_width=16,
  frequencies=32,
)
IMAGE = 7, 20  # tokens of an image, width
SCALE = 0.6  # of what control blocks add
VARIANTS = {
  'i2v_2.2': dict(cond_channels=8),
  'i2v_2.1': dict(cond_channels=8, image_width=20),
  'flf2v': dict(cond_channels=8, image_width=20, image_tokens=14),
  'vace': dict(control_layers=(0, 2), control_channels=10),
  'vace_scaled': dict(control_layers=(0, 2), control_channels=10),
  'anyflow': dict(flow_map=0.25),
}


def randomised(model):
  import torch

  torch.manual_seed(0)
  for name, parameter in model.named_parameters():
    torch.nn.init.normal_(parameter, std=0.08)
    if 'norm' in name and name.endswith('weight'):
      parameter.data.add_(1)
  return model.eval()


def build(name):
  """(diffusers' model, ours, params) of the same weights."""
  import diffusers

  config = dit.DiTConfig(**BASE, **VARIANTS[name])
  values = wan_transformer.write_config(config)
  cls = getattr(diffusers, values.pop('_class_name'))
  theirs = randomised(cls.from_config(values))
  state = {k: v.numpy() for k, v in theirs.state_dict().items()}
  params = wan_transformer.params_from_torch_names(state)
  back = wan_transformer.torch_names_from_params(params)
  assert back.keys() == state.keys()
  for key, tensor in state.items():
    np.testing.assert_array_equal(back[key], tensor)
  shapes = networks.of(config).published_shapes()
  assert {k: v.shape for k, v in state.items()} == shapes
  return theirs, dit.DiT(config), params


def torch_of(x):
  import torch

  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def expected_of(name, theirs, z, t, text, more, image, end):
  import torch

  step, words = torch.from_numpy(1000 * t[:, 0]), torch.from_numpy(text)
  if name == 'anyflow':  # frames first, a timestep for each
    frames = torch_of(z).transpose(1, 2).contiguous()
    each = (len(z), z.shape[1])
    y = theirs(
      hidden_states=frames,
      timestep=step[:, None].expand(each),
      r_timestep=torch.from_numpy(1000 * end).expand(each),
      encoder_hidden_states=words,
      return_dict=False,
    )[0]
    return np.moveaxis(y.transpose(1, 2).numpy(), 1, -1)
  call = {}
  if 'cond_Bfhwc' in more:
    z = np.concatenate([z, more['cond_Bfhwc']], -1)
  if 'control_Bfhwc' in more:
    call['control_hidden_states'] = torch_of(more['control_Bfhwc'])
  if 'control_scale_B' in more:
    call['control_hidden_states_scale'] = torch.full((2,), SCALE)
  if image is not None:
    # diffusers takes two images of a clip as two rows of the batch.
    call['encoder_hidden_states_image'] = torch.from_numpy(
      image.reshape(-1, *IMAGE)
    )
  y = theirs(torch_of(z), step, words, return_dict=False, **call)[0]
  return np.moveaxis(y.numpy(), 1, -1)


@pytest.mark.parametrize('name', VARIANTS)
def test_velocity_agrees_with_diffusers(name):
  import torch

  theirs, ours, params = build(name)
  config, rng = ours.config, np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  z = normal(2, 2, 4, 6, config.channels)
  text = normal(2, 512, 16)  # diffusers takes what exceeds 512 as an image
  t = np.float32([[0.923], [0.377]])
  end, image, more = np.float32([[0.5], [0.0]]), None, {}
  if config.cond_channels:
    more['cond_Bfhwc'] = normal(*z.shape[:4], config.cond_channels)
  if config.control_layers:
    more['control_Bfhwc'] = normal(*z.shape[:4], config.control_channels)
  if name == 'vace_scaled':
    more['control_scale_B'] = np.full(len(z), SCALE, np.float32)
  if config.image_width:
    image = normal(2, config.image_tokens or IMAGE[0], IMAGE[1])
  with torch.no_grad():
    expected = expected_of(name, theirs, z, t, text, more, image, end)
  if config.flow_map:
    more['end_BT'] = end
  context = text if image is None else ImageContext(text, image)

  @jax.jit
  def predictions(params):
    variables = {'params': params}
    plain = ours.apply(variables, z, t, context, **more)
    cache = kv_cache.precompute_kv(config, variables, context)
    cached = ours.apply(variables, z, t, cache, **more)
    blocks = first_block_cache.init(config, z.shape)
    skipping, _ = first_block_cache.predict(
      ours, variables, z, t, cache, blocks, threshold=0.1, **more
    )
    return plain, cached, skipping

  print(name, np.abs(expected).max())
  for prediction in predictions(params):
    assert prediction.shape == expected.shape
    print('difference', np.abs(prediction - expected).max())
    np.testing.assert_allclose(prediction, expected, atol=2e-5, rtol=0)


def test_image_encoder_agrees_with_transformers():
  import torch
  import transformers

  sizes = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=28,
    patch_size=14,
  )
  config = image_encoder.ImageConfig(**sizes)
  theirs = randomised(
    transformers.CLIPVisionModel(
      transformers.CLIPVisionConfig(**sizes, hidden_act='gelu')
    )
  )
  network, params = networks.of(config), {}
  state = {
    clip.published_name(k): v.numpy() for k, v in theirs.state_dict().items()
  }
  state = {k: v for k, v in state.items() if 'position_ids' not in k}
  assert {k: v.shape for k, v in state.items()} == network.published_shapes()
  stacks = {}
  for name, path, layer, layout in network.rows:
    array = network.from_torch(state[name], layout)
    np.testing.assert_array_equal(network.to_torch(array, layout), state[name])
    if layer is None:
      layouts.put(params, path.split('.'), array)
    else:
      stacks.setdefault(path, []).append(array)
  for path, arrays in stacks.items():
    layouts.put(params, path.split('.'), np.stack(arrays))
  image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
  pixels = image_encoder.ImageEncoder(config).pixels(image)[None]
  with torch.no_grad():
    expected = theirs(torch_of(pixels), output_hidden_states=True)
  expected = expected.hidden_states[-2].numpy()
  result = jax.jit(image_encoder.ImageEncoder(config).encode)(params, pixels)
  print('difference', np.abs(result - expected).max(), np.abs(expected).max())
  np.testing.assert_allclose(result, expected, atol=2e-5, rtol=0)
