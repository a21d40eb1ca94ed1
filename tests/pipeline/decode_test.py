"""Frames are the same, however a picture is divided while it is decoded."""

import numpy as np
import pytest

from spacetime.media.pixels import to_frames
from spacetime.models.autoencoder import identity
from spacetime.pipeline import decode as decode_lib
from spacetime.pipeline import decode_shards, decode_tiles
from spacetime.pipeline.request import Request
from tests.helpers.seeded_weights import draw

CODEC = identity.IdentityAutoencoder(time=2)
Z = draw('z', (2, 3, 4, 6, 6), 0.3).clip(-1, 1)


def parse(cut=None, *, overlap=8, devices=1, latent=(4, 6)):
  request = Request(
    decode_tiles=cut, decode_overlap=overlap, decode_shards=devices
  )
  return decode_lib.parse(request, latent=latent)


def test_full_frames():
  frames = decode_lib.Decoder(CODEC, {})(Z)
  assert frames.dtype == np.uint8 and frames.shape == (2, 5, 4, 6, 3)
  np.testing.assert_array_equal(frames, to_frames(CODEC.decode({}, Z)))


def test_shards_are_those_of_the_flags(monkeypatch):
  layout = parse(devices=4)
  assert len(layout.devices) == 4
  decoders = []

  def decoder(*args, **kwargs):
    decoders.append(original(*args, **kwargs))
    return decoders[-1]

  original = decode_shards.decoder
  monkeypatch.setattr(decode_shards, 'decoder', decoder)
  decode = decode_lib.Decoder(CODEC, {}, layout)
  for _ in range(2):  # a second batch takes the same programs
    np.testing.assert_array_equal(decode(Z), decode_lib.Decoder(CODEC, {})(Z))
  assert len(decoders) == 1 and decoders[0].side == 'height'


def test_tiles_are_those_of_the_flags(monkeypatch):
  layout = parse('2x1', overlap=2)
  assert layout == decode_lib.Layout(
    decode_tiles.Tiles(rows=1, columns=2, overlap=2)
  )
  calls = []

  def decode(codec, params, z, cut, **kwargs):
    calls.append(cut)
    return original(codec, params, z, cut, **kwargs)

  original = decode_tiles.decode
  monkeypatch.setattr(decode_tiles, 'decode', decode)
  actual = decode_lib.Decoder(CODEC, {}, layout)(Z)
  assert calls == [layout.tiles]
  # A blend of two equal values may round to another byte.
  expected = decode_lib.Decoder(CODEC, {})(Z).astype(int)
  assert np.abs(actual - expected).max() <= 1


def test_one_device_and_no_tiles_decode_full_frames():
  assert parse() == decode_lib.FULL_FRAMES


@pytest.mark.parametrize(
  'cut, changes, text',
  [
    ('2', {}, "decode_tiles='2': expected COLUMNSxROWS, such as 2x2"),
    ('0x2', {}, 'tiles 2 x 0, overlap 8: expected positive'),
    ('3x1', {'overlap': 4}, '3 tiles over 6 latent cells, 4 shared'),
    ('1x3', {'overlap': 3}, '3 tiles over 4 latent cells, 3 shared'),
    (None, {'devices': 9}, 'decode_shards=9: expected 1 to 8'),
    (None, {'devices': 5}, '4 x 6 cells over 5 devices'),
    ('2x1', {'devices': 2, 'overlap': 2}, 'which has no seams'),
  ],
)
def test_refuses(cut, changes, text):
  with pytest.raises(ValueError, match=text):
    parse(cut, **changes)
