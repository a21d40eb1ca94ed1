"""Prompt embeddings: cached by content; the encoder is freed."""

import os
import weakref

import jax
import numpy as np
import pytest
from absl import logging

from spacetime import sharding
from spacetime.checkpoint import load
from spacetime.diffusion import conditioning_video
from spacetime.pipeline import prompt_embeds, prompts
from spacetime.pipeline.engine import Engine
from tests.helpers import published_folder, sampling


def opened(folder):
  mesh = sharding.single_device_mesh()
  return load.open_model(str(folder), mesh=mesh)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return published_folder.write(tmp_path_factory.mktemp('texts') / 'tiny')


def two(folder):
  """A tiny folder with two transformers."""
  published_folder.write(folder)
  other = published_folder.drawn(published_folder.TRANSFORMER)
  other['proj_out.bias'] += 1
  published_folder.write_part(
    folder / 'transformer_2', published_folder.TRANSFORMER, tensors=other
  )
  published_folder.change_index(folder, boundary_ratio=0.875)
  return folder


def watched(model, log):
  """Notes what is read, and which parameters are alive just then."""
  alive = {}

  def watch(root, read):
    def reader():
      held = [
        other
        for other, refs in alive.items()
        if any(ref() is not None for ref in refs)
      ]
      log.append((root, held))
      params = read()
      alive[root] = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]
      return params

    return reader

  for root, read in list(model.readers.items()):
    model.readers[root] = watch(root, read)
  return model


def sample(model, prompts=('a red 3',), **more):
  return sampling.frames(model, prompts, size=(3, 8, 16), steps=4, **more)


@pytest.mark.slow
def test_a_network_is_freed_before_the_next_is_read(tmp_path):
  log = []
  image = np.zeros((8, 16, 3), np.uint8)
  window = conditioning_video.images({0: image}, frames=3, hold=2)
  prompts = ('a red 3', 'snow', 'a red 3')
  model = watched(opened(two(tmp_path / 'tiny')), log)
  videos = sample(model, prompts, batch=2, conditioning=window)
  assert len(videos) == 3
  # The second batch is sampled after the first is decoded, so that it can be
  # written; networks of this engine do not stay in memory.
  each = ['dit', 'dit_2', 'autoencoder']
  assert log == [(root, []) for root in ['text', 'autoencoder', *each, *each]]


@pytest.mark.slow
def test_with_every_prompt_in_the_cache_the_encoder_is_never_read(
  folder, tmp_path
):
  cache = prompt_embeds.Cache(tmp_path / 'cache')
  first = sample(opened(folder), ['a red 3', 'snow'], cache=cache)
  assert len(list(cache.folder.iterdir())) == 3  # the negative one too
  log = []
  again = sample(
    watched(opened(folder), log), ['snow', 'a red 3 '], cache=cache
  )
  assert [root for root, _ in log] == ['dit', 'autoencoder']
  plain = sample(opened(folder), ['snow', 'a red 3'])
  np.testing.assert_array_equal(again, plain)
  assert not np.array_equal(first[0], again[0])


def test_padding_is_not_stored_and_zero_when_read(folder):
  model = opened(folder)
  engine = Engine(model)
  tokens = prompts.tokens(engine, 'a red 3')
  (row,) = prompt_embeds.encode(Engine(model), ['a red 3'])
  count = np.count_nonzero(tokens)
  assert row.shape == (count, published_folder.TEXT.d_model) and count < 20
  padded = prompt_embeds.batch([row, row[:2]], length=512)
  params = {'text': model.read('text')}
  full = jax.jit(model.networks.embed)(params, tokens[None])
  np.testing.assert_array_equal(padded[0], full[0])
  assert not padded[1, 2:].any() and padded.shape == (2, 512, row.shape[1])


@pytest.mark.slow
def test_a_damaged_file_is_encoded_again(folder, tmp_path, caplog):
  logging.use_absl_handler()
  model, cache = opened(folder), prompt_embeds.Cache(tmp_path)
  (right,) = prompt_embeds.encode(Engine(model), ['snow'], cache=cache)
  (path,) = tmp_path.iterdir()
  full = path.read_bytes()
  flipped = full[:-3] + bytes([full[-3] ^ 64]) + full[-2:]
  for i, damaged in enumerate([full[:-5], b'', flipped, b'no header at all']):
    path.write_bytes(damaged)
    with caplog.at_level('WARNING'):
      (embeds,) = prompt_embeds.encode(Engine(model), ['snow'], cache=cache)
    np.testing.assert_array_equal(embeds, right)
    assert len(caplog.records) == i + 1
    message = caplog.records[-1].getMessage()
    assert 'encoded again' in message and str(path) in message
    np.testing.assert_array_equal(
      prompt_embeds.read_file(path)['prompt_embeds'][0], right
    )
  prompt_embeds.write_file(path, right[None, :, :5])
  prompt_embeds.encode(Engine(model), ['snow'], cache=cache)
  assert 'expected (1, S, 12)' in caplog.records[-1].getMessage()


@pytest.mark.slow
def test_a_change_in_the_middle_of_an_array_is_seen(tmp_path):
  folder = published_folder.write(tmp_path / 'tiny')
  cache = prompt_embeds.Cache(tmp_path / 'cache')
  first, name = opened(folder), 'shared.weight'
  (before,) = prompt_embeds.encode(Engine(first), ['snow'], cache=cache)
  tensors = published_folder.drawn(published_folder.TEXT)
  # Of each array the first and last 512 values are in the hash alone.
  tensors[name].reshape(-1)[512:-512] += 1
  path = published_folder.write_part(
    folder / 'text_encoder', published_folder.TEXT, tensors=tensors
  )
  os.utime(path, ns=(0, 1))  # another time than the first one's in any case
  second = opened(folder)
  assert second.text_hash == first.text_hash
  (after,) = prompt_embeds.encode(Engine(second), ['snow'], cache=cache)
  assert np.abs(after - before).max() > 1e-3
  assert len(list(cache.folder.iterdir())) == 2
  # Nothing is read again where nothing has changed.
  again = opened(folder)
  again.readers.pop('text')
  (same,) = prompt_embeds.encode(Engine(again), ['snow'], cache=cache)
  np.testing.assert_array_equal(same, after)


def test_a_cache_that_cannot_be_written_warns(folder, tmp_path, caplog):
  logging.use_absl_handler()
  (tmp_path / 'file').write_text('')
  cache = prompt_embeds.Cache(tmp_path / 'file' / 'cache')
  with caplog.at_level('WARNING'):
    assert (
      len(prompt_embeds.encode(Engine(opened(folder)), ['snow'], cache=cache))
      == 1
    )
  assert 'no cache of prompts' in caplog.records[0].getMessage()


def test_the_key_is_of_all_that_the_features_depend_on(folder, tmp_path):
  base = dict(encoder='e', length=512, dtype='float32')
  changes = [
    {},
    {'encoder': 'f'},
    {'length': 51},
    {'dtype': 'bfloat16'},
  ]
  keys = {
    prompt_embeds.cache_key('snow', **(base | change)) for change in changes
  }
  keys |= {prompt_embeds.cache_key('2snow', **(base | {'length': 51}))}
  keys |= {prompt_embeds.cache_key('\ud83d', **base)}
  assert len(keys) == 6
  # Of another tokenizer, other weights or another dtype of them.
  names = {opened(folder).text_hash}
  for i in range(3):
    other = published_folder.write(tmp_path / str(i), dtype=np.float32)
    if i == 0:
      published_folder.write_part(
        other / 'text_encoder', published_folder.TEXT, dtype=np.float16
      )
    elif i == 1:
      tensors = published_folder.drawn(published_folder.TEXT)
      tensors['shared.weight'][0, 0] += 1
      published_folder.write_part(
        other / 'text_encoder', published_folder.TEXT, tensors=tensors
      )
    names.add(opened(other).text_hash)
  assert len(names) == 3


def test_our_own_models_are_not_cached_and_refuse_long_prompts(tmp_path):
  model, cache = opened('digits'), prompt_embeds.Cache(tmp_path)
  assert len(prompt_embeds.encode(Engine(model), ['a red 3'], cache=cache)) == 1
  assert not list(tmp_path.iterdir())
  with pytest.raises(ValueError, match='prompt has .* tokens; .* at most'):
    prompt_embeds.encode(Engine(model), ['seven ' * 200])


def test_files_are_as_diffusers_takes_them(tmp_path):
  text_nSY = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
  path = tmp_path / 'x.safetensors'
  prompt_embeds.write_file(path, text_nSY)
  np.testing.assert_array_equal(
    prompt_embeds.read_file(path)['prompt_embeds'], text_nSY
  )
  assert [p.name for p in tmp_path.iterdir()] == [path.name]
