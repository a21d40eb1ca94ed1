"""Latents and texts computed once are those computed in the step."""

import dataclasses

import jax
import numpy as np
import pytest

from spacetime.data import latent_cache
from spacetime.media import video_reader
from spacetime.media.pixels import to_video
from spacetime.pipeline import precompute, prompt_embeds
from spacetime.pipeline.engine import Engine
from tests.helpers import finetuned


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return finetuned.write(tmp_path_factory.mktemp('encode') / 'all')


def test_what_is_kept_is_what_the_networks_give(folder):
  found = latent_cache.Cache(folder / 'cache')
  model = precompute.open_encoder(str(folder / 'wan')).model
  assert found.about.counts == (7, 1)
  assert found.about.latent == (3, 4, 8, 3)
  assert (found.about.length, found.about.features) == (512, 12)
  whole = model.load()
  nets = whole.networks
  for split, i, number in (('train', 4, 4), ('held_out', 0, 7)):
    record = found.split(split)[i]
    caption = f'a red {number} moves  left &amp; right'
    assert record['caption'] == caption
    video = video_reader.read_video(
      folder / f'clips/clip{number}.mp4', frames=5, height=16, width=32, fps=8
    )
    z = jax.jit(nets.encode)(whole.frozen, to_video(video)[None])
    np.testing.assert_allclose(record['latents'], z[0], atol=1e-5)
    cleaned = f'a red {number} moves left & right'
    tokens = whole.tokenizer.encode(cleaned, length=512)
    text = jax.jit(nets.embed)(whole.params, tokens[None])
    np.testing.assert_allclose(record['text'], text[0], atol=1e-5)
  (empty,) = prompt_embeds.encode(Engine(model), [''])
  np.testing.assert_array_equal(found.empty_SY[: len(empty)], empty)
  assert not found.empty_SY[len(empty) :].any()


def test_goes_on_where_it_was_stopped(folder, tmp_path, monkeypatch):
  data = finetuned.data(folder)
  found = precompute.open_encoder(str(folder / 'wan'))
  out, written = tmp_path / 'cache', []
  write_shard = latent_cache.write_shard

  def killed(path, records):
    if len(written) == 6:
      raise KeyboardInterrupt
    write_shard(path, records)
    written.append(path.name)

  monkeypatch.setattr(latent_cache, 'write_shard', killed)
  with pytest.raises(KeyboardInterrupt):
    precompute.encode(found, data, out, shard=3)
  with pytest.raises(ValueError, match='is incomplete: 3 shards are missing'):
    latent_cache.Cache(out)
  before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
  written.clear()
  precompute.encode(found, data, out, shard=3)
  assert len(written) == 3
  for name, time in before.items():
    assert (out / name).stat().st_mtime_ns == time, name
  whole, again = latent_cache.Cache(folder / 'cache'), latent_cache.Cache(out)
  for split in latent_cache.SPLITS:
    for i in range(len(whole.split(split))):
      a, b = whole.split(split)[i], again.split(split)[i]
      np.testing.assert_array_equal(a['latents'], b['latents'])
      np.testing.assert_array_equal(a['text'], b['text'])
  precompute.encode(found, data, out, shard=3)
  assert len(written) == 3
  other = dataclasses.replace(data, fps=9.0)
  with pytest.raises(ValueError, match='another cache; fps: 8, now 9.0'):
    precompute.encode(found, other, out, shard=3)
