"""The autoencoder against diffusers, live, on random small instances."""

import jax
import numpy as np
import pytest

from spacetime.checkpoint.interop import wan_vae
from spacetime.models.autoencoder import wan

pytestmark = pytest.mark.parity

SIZES = {
  'wan2.1': dict(base_dim=8, z_dim=5, dim_mult=(1, 2, 4, 4)),
  'wan2.2': dict(
    base_dim=8,
    decoder_base_dim=10,
    z_dim=5,
    dim_mult=(1, 2, 4, 4),
    is_residual=True,
    patch_size=2,
  ),
}


def build(form: str):
  """A diffusers model and (Autoencoder, params) of the same weights."""
  import diffusers
  import torch

  sizes = SIZES[form]
  rng = np.random.default_rng(0)
  mean = tuple(rng.normal(size=sizes['z_dim']).tolist())
  std = tuple(rng.uniform(0.5, 2, size=sizes['z_dim']).tolist())
  side = sizes.get('patch_size', 1)
  torch.manual_seed(0)
  theirs = diffusers.AutoencoderKLWan(
    base_dim=sizes['base_dim'],
    decoder_base_dim=sizes.get('decoder_base_dim'),
    z_dim=sizes['z_dim'],
    dim_mult=list(sizes['dim_mult']),
    num_res_blocks=1,
    temperal_downsample=[False, True, True],
    latents_mean=list(mean),
    latents_std=list(std),
    is_residual=sizes.get('is_residual', False),
    in_channels=3 * side**2,
    out_channels=3 * side**2,
    patch_size=side if side > 1 else None,
    scale_factor_spatial=8 * side,
  ).eval()
  ours = wan.WanAutoencoder(
    wan.WanAutoencoderConfig(
      **sizes, num_res_blocks=1, latents_mean=mean, latents_std=std
    )
  )
  weights = {k: v.numpy() for k, v in theirs.state_dict().items()}
  return theirs, ours, wan_vae.params_from_torch_names(weights)


@pytest.mark.parametrize('form', list(SIZES))
@pytest.mark.parametrize('frames', [1, 5, 9, 13])
def test_encode_and_decode_agree_with_diffusers(form, frames):
  import torch

  theirs, ours, params = build(form)
  _, height, width = ours.stride
  rng = np.random.default_rng(frames)
  size = (2, frames, 2 * height, 3 * width, 3)
  video = rng.uniform(-1, 1, size=size).astype(np.float32)
  latents = 1 + (frames - 1) // 4
  mean = rng.normal(size=(2, latents, 2, 3, ours.z_dim)).astype(np.float32)
  with torch.no_grad(), jax.default_matmul_precision('highest'):
    dist = theirs.encode(_theirs(video)).latent_dist
    posterior = ours.posterior(params, video)
    _close(posterior.mean_Bfhwc, dist.mean)
    _close(posterior.logvar_Bfhwc, dist.logvar)
    decoded = theirs.decode(_theirs(mean)).sample
    _close(ours.decode(params, ours.normalise(mean)), decoded)


@pytest.mark.parametrize('form', list(SIZES))
def test_name_table_is_invertible_and_complete(form):
  theirs, ours, params = build(form)
  shapes = jax.eval_shape(ours.init, jax.random.key(0))
  assert jax.tree.structure(shapes) == jax.tree.structure(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(a.shape, b.shape), shapes, params
  )
  back = wan_vae.torch_names_from_params(params)
  state = theirs.state_dict()
  assert set(back) == set(state)
  for name, tensor in state.items():
    np.testing.assert_array_equal(back[name], tensor.numpy())


def _theirs(x_BFHWC):
  import torch

  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x_BFHWC, -1, 1)))


def _close(ours, theirs):
  theirs = np.moveaxis(theirs.numpy(), 1, -1)
  assert ours.shape == theirs.shape
  print(
    'difference',
    np.abs(np.asarray(ours) - theirs).max(),
    'largest',
    np.abs(theirs).max(),
  )
  np.testing.assert_allclose(ours, theirs, atol=5e-6, rtol=0)
