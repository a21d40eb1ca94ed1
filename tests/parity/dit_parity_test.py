"""The transformer against diffusers, live, on random small instances."""

import jax
import numpy as np
import pytest

from spacetime.checkpoint.interop import wan_transformer
from spacetime.models.transformer import dit

pytestmark = pytest.mark.parity

SIZES = {
  'narrow': dict(channels=3, width=24, heads=2, layers=2, mlp=40),
  'uneven': dict(channels=5, width=60, heads=3, layers=1, mlp=32),
  'real heads': dict(channels=4, width=384, heads=3, layers=3, mlp=512),
}
TEXT = 11, 20


def build(size: str):
  """A diffusers model and (DiT, params) of the same weights."""
  import diffusers
  import torch

  sizes = SIZES[size]
  torch.manual_seed(0)
  theirs = diffusers.WanTransformer3DModel(
    patch_size=(1, 2, 2),
    num_attention_heads=sizes['heads'],
    attention_head_dim=sizes['width'] // sizes['heads'],
    in_channels=sizes['channels'],
    out_channels=sizes['channels'],
    text_dim=TEXT[1],
    freq_dim=256,
    ffn_dim=sizes['mlp'],
    num_layers=sizes['layers'],
  ).eval()
  for name, parameter in theirs.named_parameters():
    if 'norm' in name:
      torch.nn.init.normal_(parameter, mean=float('bias' not in name), std=0.3)
  ours = dit.DiT(
    dit.DiTConfig(patch=(1, 2, 2), text_width=TEXT[1], **sizes),
  )
  state = {k: v.numpy() for k, v in theirs.state_dict().items()}
  return theirs, ours, state


@pytest.mark.parametrize('size', list(SIZES))
@pytest.mark.parametrize('frames', [1, 4])
@pytest.mark.parametrize('timesteps', ['clip', 'frame'])
def test_velocity_agrees_with_diffusers(size, frames, timesteps):
  import torch

  theirs, ours, state = build(size)
  params = wan_transformer.params_from_torch_names(state)
  rng = np.random.default_rng(frames)
  shape = (2, frames, 4, 6, ours.config.channels)
  z_Bfhwc = rng.normal(size=shape).astype(np.float32)
  text_BSY = rng.normal(size=(2, *TEXT)).astype(np.float32)
  # A conditioning frame first, and numbers that float32 thousandths round.
  timestep = np.array([[999], [511]])
  if timesteps == 'frame':
    timestep = np.array([[0, 511, 127, 251], [875, 999, 502, 3]])[:, :frames]
  step_Bt = torch.from_numpy(timestep)
  step_Bt = (
    step_Bt[:, 0] if timesteps == 'clip' else step_Bt.repeat_interleave(6, 1)
  )
  with torch.no_grad():
    expected = theirs(
      torch.from_numpy(np.ascontiguousarray(np.moveaxis(z_Bfhwc, -1, 1))),
      step_Bt,
      torch.from_numpy(text_BSY),
      return_dict=False,
    )[0].numpy()
  expected = np.moveaxis(expected, 1, -1)
  prediction = jax.jit(ours.apply)(
    {'params': params}, z_Bfhwc, np.float32(timestep / 1000), text_BSY
  )
  assert prediction.shape == expected.shape
  print(
    'difference', np.abs(prediction - expected).max(), np.abs(expected).max()
  )
  np.testing.assert_allclose(prediction, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize('size', list(SIZES))
def test_name_table_is_invertible_and_complete(size):
  _, ours, state = build(size)
  params = wan_transformer.params_from_torch_names(state)
  shapes = jax.eval_shape(
    ours.init,
    jax.random.key(0),
    np.zeros((1, 1, 2, 2, ours.config.channels)),
    np.zeros((1, 1)),
    np.zeros((1, *TEXT)),
  )['params']
  assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
  back = wan_transformer.torch_names_from_params(params)
  assert set(back) == set(state)
  for name, tensor in state.items():
    np.testing.assert_array_equal(back[name], tensor)
