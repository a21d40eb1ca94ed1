"""Patchify: latents <-> tokens, and the positions of tokens."""

import numpy as np

from spacetime.models.transformer import patchify
from tests.helpers.seeded_weights import draw


def test_unpatchify_inverts_patchify():
  z = draw('z', (2, 3, 4, 6, 5))
  x = patchify.patchify(z, (1, 2, 3))
  assert x.shape == (2, 3 * 2 * 2, 1 * 2 * 3 * 5)
  np.testing.assert_array_equal(patchify.unpatchify(x, (1, 2, 3), (3, 2, 2)), z)


def test_patchify_order_of_tokens_and_values():
  z = np.arange(2 * 4 * 6 * 3).reshape(1, 2, 4, 6, 3)
  x = np.asarray(patchify.patchify(z, (1, 2, 2)))
  position = patchify.positions((2, 2, 3))
  for n in (0, 4, 7, 11):
    t, h, w = position[n]
    cut = z[0, t, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
    np.testing.assert_array_equal(x[0, n], cut.reshape(-1))


def test_position_cosines_are_a_basis_between_the_edges():
  grid = (4, 3, 5)
  table = patchify.position_cosines(grid, 2).reshape(*grid, 3, 2)
  # Halfway between the edges is the same at any size.
  np.testing.assert_allclose(table[0, 1, 0, 1], [0, -1], atol=1e-6)
  np.testing.assert_allclose(table[0, 0, 2, 2], [0, -1], atol=1e-6)
  along = table[:, 0, 0, 0]
  np.testing.assert_allclose(along.T @ along, 2 * np.eye(2), atol=1e-6)
  np.testing.assert_allclose(along[::-1], along * [-1, 1], atol=1e-6)
  # Each axis has columns of its own.
  assert (table[..., 1, :] == table[:1, :, :1, 1, :]).all()
