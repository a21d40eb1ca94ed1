"""Decoding in tiles: spans, weights, and remaining seams."""

import functools
import pathlib

import jax
import numpy as np
import pytest

from spacetime import checkpoint, sharding
from spacetime.checkpoint import load
from spacetime.config import networks
from spacetime.data.digits import examples, render
from spacetime.data.digits import world as world_lib
from spacetime.media.pixels import to_video
from spacetime.models.autoencoder import identity, wan
from spacetime.pipeline import decode_tiles
from tests.helpers.seeded_weights import draw

ASSETS = pathlib.Path(__file__).parents[2] / 'spacetime' / 'assets'


@pytest.mark.parametrize(
  'size, count, overlap', [(90, 3, 8), (13, 2, 3), (14, 3, 8), (7, 1, 4)]
)
def test_tiles_cover_the_side_and_share_cells(size, count, overlap):
  cells = decode_tiles.spans(size, count, overlap)
  assert len(cells) == count
  assert cells[0].start == 0 and cells[-1].stop == size
  assert len({c.stop - c.start for c in cells}) == 1
  for before, after in zip(cells, cells[1:], strict=False):
    assert before.stop - after.start >= overlap
    assert after.start > before.start


@pytest.mark.parametrize('size, count, overlap', [(90, 3, 8), (14, 3, 8)])
def test_the_shares_of_a_pixel_sum_to_one(size, count, overlap):
  cells = decode_tiles.spans(size, count, overlap)
  shares = decode_tiles.weights(cells, 4)
  total = np.zeros(4 * size)
  for cell, share in zip(cells, shares, strict=True):
    assert share.min() >= 0
    total[4 * cell.start : 4 * cell.stop] += share
  np.testing.assert_allclose(total, 1, atol=1e-6)
  # A quarter of what is shared stands at a tile's edge, and counts for nothing.
  assert shares[0][0] == 1 and np.all(shares[0][-overlap:] == 0)
  assert np.all(shares[1][:overlap] == 0) and shares[-1][-1] == 1


def test_the_identity_has_no_seams():
  model = identity.IdentityAutoencoder(time=2)
  z = draw('z', (2, 3, 11, 13, 6), 0.3).clip(-1, 1)
  cut = decode_tiles.Tiles(rows=2, columns=3, overlap=4)
  actual = decode_tiles.decode(model, {}, z, cut)
  assert actual.dtype == np.float32
  np.testing.assert_allclose(actual, model.decode({}, z), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_one_tile_equals_full_frames():
  model = wan.WanAutoencoder(wan.PRESETS['tiny'])
  params = jax.jit(model.init)(jax.random.key(0))
  z = draw('z', (2, 3, 2, 3, 3))
  first, step = jax.jit(model.decode_first), jax.jit(model.decode_step)
  cut = decode_tiles.Tiles(rows=1, columns=1)
  actual = decode_tiles.decode(model, params, z, cut, first=first, step=step)
  expected = jax.jit(model.decode)(params, z)
  assert np.std(expected) > 0.01
  np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_seams_of_a_trained_autoencoder_are_faint():
  folder = ASSETS / 'digits_autoencoder'
  experiment = checkpoint.read_experiment(folder)
  mesh = sharding.single_device_mesh()
  codec = networks.autoencoder(experiment.autoencoder)
  params = load.load_own(experiment.autoencoder, folder, mesh=mesh)[
    'autoencoder'
  ]
  world = world_lib.World(
    **{**vars(experiment.data.world), 'height': 128, 'width': 192}
  )
  record = examples.example(3, world=world, split='validation', seed=77)
  frames = render.clip(world_lib.from_json(record['scene']), world)[:1]
  first = jax.jit(codec.decode_first)
  z = jax.jit(codec.encode)(params, to_video(frames)[None])
  _, full = first(params, z)
  decode = functools.partial(decode_tiles.decode, codec, params, z, first=first)
  errors = []
  for overlap in (2, 4):
    cut = decode_tiles.Tiles(rows=1, columns=2, overlap=overlap)
    errors.append(np.abs(decode(cut) - full))
  near, far = errors
  # Measured: 0.17 and 50 dB at 2 cells, 0.05 and 56 dB at 4.
  assert (far**2).mean() < (near**2).mean() / 2
  assert -10 * np.log10((far**2).mean() / 4) > 50
  assert far.max() < 0.15
  assert np.std(full) > 0.1 and far.max() > 0


def test_tiles_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match='tiles 0 x 2, overlap 8: expected'):
    decode_tiles.Tiles(rows=0, columns=2)
  with pytest.raises(ValueError, match='2 tiles over 8 latent cells, 8 shared'):
    decode_tiles.spans(8, 2, 8)
  with pytest.raises(ValueError, match='9 tiles over 8 latent cells'):
    decode_tiles.spans(8, 9, 0)
