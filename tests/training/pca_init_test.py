"""The linear denoiser that a network can start from."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from spacetime.models.transformer import dit as dit_lib
from spacetime.models.transformer import patchify
from spacetime.training import pca_init
from tests.helpers.seeded_weights import draw

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


@functools.cache
def patches(rank=80):
  """Patches that lie in some directions, round a mean: (64, 12, 120)."""
  basis = draw('basis', (rank, 120), 0.2)
  return 0.5 + draw('coefficients', (64, 12, rank)) @ basis


def clips():
  """The latents of these patches."""
  return patchify.unpatchify(patches(), (1, 2, 2), (2, 3, 2))


@functools.cache
def network(frequencies):
  """(fresh parameters, jitted apply) with these position features."""
  config = dataclasses.replace(CONFIG, pos_embed_frequencies=frequencies)
  model = dit_lib.DiT(config)
  z, t, text = clips()[:1], np.zeros((1, 1)), np.zeros((1, 3, 5))
  variables = jax.jit(model.init)(jax.random.key(1), z, t, text)
  return variables['params'], jax.jit(model.apply)


def test_components_span_the_patches():
  x = patches()
  pca = pca_init.components(x, rank=96)
  eye = pca.basis_VR.T @ pca.basis_VR
  np.testing.assert_allclose(eye, np.eye(96), atol=1e-4)
  assert np.all(np.diff(pca.variance_R) <= 0)
  assert pca.variance_R[79] > 1e-2 > 1e-3 > pca.variance_R[80]
  centred = x - pca.mean_V
  kept = centred @ pca.basis_VR @ pca.basis_VR.T
  np.testing.assert_allclose(kept, centred, atol=1e-3)


@pytest.mark.parametrize('level, frequencies', [(0.5, 0), (0.8, 0), (0.8, 4)])
def test_a_fresh_network_denoises_as_well_as_a_line_can(level, frequencies):
  x = patches()
  pca = pca_init.components(x, rank=96)
  fresh, apply = network(frequencies)
  params = pca_init.start(fresh, pca, level=level)
  y = (1 - level) * x + level * draw('noise', x.shape)
  z_t = patchify.unpatchify(y, (1, 2, 2), (2, 3, 2))
  text = np.zeros((64, 3, 5), np.float32)
  prediction = patchify.patchify(
    apply({'params': params}, z_t, np.full((64, 1), level, 'f'), text),
    (1, 2, 2),
  )
  y = (y - (1 - level) * pca.mean_V) @ pca.basis_VR
  power = (1 - level) ** 2 * pca.variance_R + level**2
  best = (y * (1 - level) * pca.variance_R / power) @ pca.basis_VR.T
  best = pca.mean_V + best
  error = lambda a: np.mean(np.square(np.asarray(a) - x))  # noqa: E731
  if frequencies:
    shown = (
      patchify.position_cosines((2, 3, 2), frequencies)
      @ params['pos_embed']['kernel']
    )
    np.testing.assert_array_equal(shown[:, :96], 0)
    energy = np.square(shown).sum(1).mean()
    np.testing.assert_allclose(energy, 96, rtol=0.2)
  # The final norm measures each token by itself, so it is near, not equal.
  assert error(prediction) < 1.3 * error(best) < error(x.mean())


def test_refuses_too_few_patches():
  with pytest.raises(
    ValueError, match='3 patches of 12 values are too few for 6'
  ):
    pca_init.components(np.zeros((1, 3, 12)), rank=6)
