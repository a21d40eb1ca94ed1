"""The linear denoiser that a network can start from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.models.transformer import dit as dit_lib
from spacetime.models.transformer import patchify
from spacetime.training import pca_init

CONFIG = dit_lib.DiTConfig(
  channels=30,
  patch=(1, 2, 2),
  width=128,
  heads=2,
  layers=2,
  mlp=20,
  text_width=5,
  frequencies=8,
)


def clips(rank=80):
  """Latents whose patches lie in some directions, round a mean."""
  keys = jax.random.split(jax.random.key(0), 2)
  basis = jax.random.normal(keys[0], (rank, 120)) * 0.2
  x = 0.5 + jax.random.normal(keys[1], (64, 12, rank)) @ basis
  return patchify.unpatchify(x, (1, 2, 2), (2, 3, 2))


def test_components_span_the_patches():
  x = np.asarray(patchify.patchify(clips(), (1, 2, 2)))
  found = pca_init.components(x, rank=96)
  eye = found.basis_VR.T @ found.basis_VR
  np.testing.assert_allclose(eye, np.eye(96), atol=1e-4)
  assert np.all(np.diff(found.variance_R) <= 0)
  assert found.variance_R[79] > 1e-2 > 1e-3 > found.variance_R[80]
  centred = x - found.mean_V
  kept = centred @ found.basis_VR @ found.basis_VR.T
  np.testing.assert_allclose(kept, centred, atol=1e-3)


@pytest.mark.parametrize('level, places', [(0.5, 0), (0.8, 0), (0.8, 4)])
def test_a_fresh_network_denoises_as_well_as_a_line_can(level, places):
  z = clips()
  x = np.asarray(patchify.patchify(z, (1, 2, 2)))
  found = pca_init.components(x, rank=96)
  network = dit_lib.DiT(
    dataclasses.replace(CONFIG, pos_embed_frequencies=places)
  )
  t, text = jnp.full((64, 1), level), jnp.zeros((64, 3, 5))
  params = network.init(jax.random.key(1), z, t, text)['params']
  params = pca_init.start(params, found, level=level)
  noise = jax.random.normal(jax.random.key(2), z.shape)
  z_t = (1 - level) * z + level * noise
  y = jnp.asarray(patchify.patchify(z_t, (1, 2, 2)))
  y = (y - (1 - level) * found.mean_V) @ found.basis_VR
  power = (1 - level) ** 2 * found.variance_R + level**2
  best = (y * (1 - level) * found.variance_R / power) @ found.basis_VR.T
  best = patchify.unpatchify(found.mean_V + best, (1, 2, 2), (2, 3, 2))
  made = network.apply({'params': params}, z_t, t, text)
  error = lambda a: float(jnp.mean(jnp.square(a - z)))  # noqa: E731
  if places:
    shown = (
      patchify.position_cosines((2, 3, 2), places)
      @ params['pos_embed']['kernel']
    )
    np.testing.assert_array_equal(shown[:, :96], 0)
    energy = np.square(shown).sum(1).mean()
    np.testing.assert_allclose(energy, 96, rtol=0.2)
  # The final norm measures each token by itself, so it is near, not equal.
  assert error(made) < 1.3 * error(best) < error(jnp.mean(z))


def test_refuses_too_few_patches():
  with pytest.raises(ValueError, match='3 patches of 12 values: too few for 6'):
    pca_init.components(np.zeros((1, 3, 12)), rank=6)


def fresh(places):
  network = dit_lib.DiT(
    dataclasses.replace(CONFIG, pos_embed_frequencies=places)
  )
  z, t, text = clips()[:1], jnp.zeros((1, 1)), jnp.zeros((1, 3, 5))
  return network.init(jax.random.key(1), z, t, text)['params']
