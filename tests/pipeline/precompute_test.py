"""Precomputed latents and embeddings equal those of the training step."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from spacetime.data import latent_cache
from spacetime.media import video_reader, video_writer
from spacetime.media.pixels import to_video
from spacetime.pipeline import encoder as encoder_lib
from spacetime.pipeline import precompute, prompt_embeds
from spacetime.pipeline.encode_settings import DTYPES, EncodeSettings
from spacetime.pipeline.engine import Engine
from tests.helpers import finetuned, videos


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return finetuned.write(tmp_path_factory.mktemp('encode') / 'all')


@pytest.mark.slow
def test_records_hold_the_outputs_of_the_networks(folder):
  cache = latent_cache.Cache(folder / 'cache')
  model = encoder_lib.open_encoder(str(folder / 'wan')).model
  assert cache.info.counts == (7, 1)
  assert cache.info.latent == (3, 4, 8, 3)
  assert (cache.info.length, cache.info.features) == (512, 12)
  nets = model.networks
  params = {root: model.read(root) for root in ('text', 'autoencoder')}
  for split, i, number in (('train', 4, 4), ('held_out', 0, 7)):
    record = cache.split(split)[i]
    caption = f'a red {number} moves  left &amp; right'
    assert record['caption'] == caption
    video = video_reader.read_video(
      folder / f'clips/clip{number}.mp4', frames=5, height=16, width=32, fps=8
    )
    z = jax.jit(nets.encode)(params, to_video(video)[None])
    np.testing.assert_allclose(record['latents'], z[0], atol=1e-5)
    cleaned = f'a red {number} moves left & right'
    tokens = model.tokenizer.encode(cleaned, length=512)
    text = jax.jit(nets.embed)(params, tokens[None])
    np.testing.assert_allclose(record['text'], text[0], atol=1e-5)
  (empty,) = prompt_embeds.encode(Engine(model), [''])
  np.testing.assert_array_equal(cache.empty_SY[: len(empty)], empty)
  assert not cache.empty_SY[len(empty) :].any()


@pytest.mark.slow
def test_resumes_after_the_last_shard(folder, tmp_path, monkeypatch):
  data = finetuned.data(folder)
  encoder = encoder_lib.open_encoder(str(folder / 'wan'))
  out, written = tmp_path / 'cache', []
  write_shard = latent_cache.write_shard

  def killed(path, records):
    if len(written) == 6:
      raise KeyboardInterrupt
    write_shard(path, records)
    written.append(path.name)

  monkeypatch.setattr(latent_cache, 'write_shard', killed)
  with pytest.raises(KeyboardInterrupt):
    precompute.write_cache(encoder, data, out, shard=3)
  with pytest.raises(ValueError, match='is incomplete: 3 shards are missing'):
    latent_cache.Cache(out)
  before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
  written.clear()
  precompute.write_cache(encoder, data, out, shard=3)
  assert len(written) == 3
  for name, time in before.items():
    assert (out / name).stat().st_mtime_ns == time, name
  full, resumed = latent_cache.Cache(folder / 'cache'), latent_cache.Cache(out)
  for split in latent_cache.SPLITS:
    for i in range(len(full.split(split))):
      a, b = full.split(split)[i], resumed.split(split)[i]
      np.testing.assert_array_equal(a['latents'], b['latents'])
      np.testing.assert_array_equal(a['text'], b['text'])
  precompute.write_cache(encoder, data, out, shard=3)
  assert len(written) == 3
  other = dataclasses.replace(data, fps=9.0)
  with pytest.raises(ValueError, match='another cache; fps: 8, now 9.0'):
    precompute.write_cache(encoder, other, out, shard=3)


@pytest.mark.slow
def test_clips_that_cannot_be_read_are_skipped(folder, tmp_path, capsys):
  """The others keep their latents and their captions, in every batch."""
  clips = tmp_path / 'clips'
  shutil.copytree(folder / 'clips', clips)
  for i in (2, 3):
    videos.long_sound(clips / f'clip{i}.mkv')
    (clips / f'clip{i}.mp4').unlink()
  data = dataclasses.replace(
    finetuned.data(folder), dir=str(clips), frames=9, max_unreadable=0.3
  )
  for number in range(8):  # the tiny model's clips have five frames
    path = clips / f'clip{number}.mp4'
    if path.exists():
      frames = np.full((9, 16, 32, 3), 20 * number, np.uint8)
      video_writer.write_video(path, frames, fps=8)
  encoder = encoder_lib.open_encoder(str(folder / 'wan'))
  out = tmp_path / 'cache'
  arguments = {'shard': 3, 'batch_size': 2, 'text': 'captions'}
  precompute.write_cache(encoder, data, out, **arguments)
  err = capsys.readouterr().err
  assert '2 of 8 clips could not be read and were skipped: ' in err
  assert 'clip2.mkv is too short: expected 9 frames' in err
  cache = latent_cache.Cache(out)
  train = cache.split('train')
  assert cache.info.counts == (7, 1)
  assert len(train) == 5 and len(cache.split('held_out')) == 1
  captions = [train.caption(i) for i in range(5)]
  expected = [f'a red {i} moves  left &amp; right' for i in (0, 1, 4, 5, 6)]
  assert captions == [train[i]['caption'] for i in range(5)] == expected
  latents = [train[i]['latents'].mean() for i in range(5)]
  assert len(set(latents)) == 5
  # The list of clips is another one than without them.
  assert cache.identity != cache.info.source
  before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
  precompute.write_cache(encoder, data, out, **arguments)
  assert before == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
  # A clip that could not be read before the call was stopped.
  again = tmp_path / 'again'
  shutil.copytree(out, again)
  for path in again.glob('latents-train-*'):
    path.unlink()
  skipped = latent_cache.read_skipped(again)
  skipped['train'][0] = 'the network was down'
  latent_cache.write_skipped(again, skipped)
  precompute.write_cache(encoder, data, again, **arguments)
  assert latent_cache.read_skipped(again) == latent_cache.read_skipped(out)
  assert len(latent_cache.Cache(again).split('train')) == 5
  with pytest.raises(ValueError, match='2 of 8 clips cannot be read: expected'):
    precompute.write_cache(
      encoder,
      dataclasses.replace(data, max_unreadable=0.2),
      tmp_path / 'other',
      **arguments,
    )


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'checkpoint': None}, 'checkpoint=None: expected a model'),
    ({'out': ''}, "out='': expected a folder"),
    ({'text': 'tokens'}, "text='tokens': expected one of embeddings, captions"),
    ({'dtype': 'int8'}, "dtype='int8': expected one of float32, bfloat16"),
    ({'batch_size': 0}, 'batch_size=0: expected 1 or more'),
    ({'shard': 0}, 'shard=0: expected 1 or more'),
    (
      {'max_unreadable': 1.0},
      'max_unreadable=1.0: expected 0 or more, below 1',
    ),
  ],
)
def test_settings_that_cannot_work(values, message):
  with pytest.raises(ValueError, match=message):
    EncodeSettings(**({'checkpoint': 'digits', 'out': 'cache'} | values))


def test_encode_needs_clips():
  with pytest.raises(ValueError, match='expected one of `data` and `config`'):
    precompute.encode(EncodeSettings(checkpoint='digits', out='cache'))


def test_dtypes_are_those_of_the_cache():
  assert set(DTYPES) == set(latent_cache.DTYPES)
