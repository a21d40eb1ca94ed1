"""Latents and texts on disk survive a round trip, shard by shard."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from spacetime.data import latent_cache, pipeline
from spacetime.data import tokenizer as tokenizer_lib

INFO = latent_cache.CacheInfo(
  autoencoder='aaaa',
  text='tttt',
  frames=5,
  height=16,
  width=24,
  fps=8.0,
  latent=(2, 2, 3, 4),
  length=6,
  features=7,
  dtype='float32',
  source='ssss',
  counts=(5, 2),
  shard=2,
)
RNG = np.random.default_rng(0)
LATENTS = {
  split: RNG.normal(size=(n, 2, 2, 3, 4)).astype(np.float32)
  for split, n in zip(latent_cache.SPLITS, INFO.counts, strict=True)
}


def caption(split, i):
  return f'{split} é {i}'


def text(i, dtype=np.float32):
  return np.full((1 + i % 3, 7), i + 1, dtype)


def fill(folder, info=INFO, kinds=latent_cache.KINDS):
  latent_cache.create(folder, info, tokenizer=b'pieces')
  dtype = latent_cache.DTYPES[info.dtype]
  for kind in kinds:
    for split, name, numbers in latent_cache.missing(folder, info, kind):
      records = [
        {'latents': LATENTS[split][i].astype(dtype)}
        if kind == 'latents'
        else latent_cache.text_record(
          caption(split, i), text(i, dtype) if info.length else None
        )
        for i in numbers
      ]
      latent_cache.write_shard(folder / name, records)
  latent_cache.write_shard(
    folder / latent_cache.EMPTY, [latent_cache.text_record('', text(9))]
  )
  return folder


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_what_goes_in_comes_out(dtype, tmp_path):
  info = dataclasses.replace(INFO, dtype=dtype)
  cache = latent_cache.Cache(fill(tmp_path / 'c', info))
  assert cache.info == info and cache.tokenizer == b'pieces'
  kind = np.float32 if dtype == 'float32' else ml_dtypes.bfloat16
  for split, count in zip(latent_cache.SPLITS, info.counts, strict=True):
    source = cache.split(split)
    assert len(source) == count
    for i in (count - 1, 0):
      record = source[i]
      assert record['caption'] == caption(split, i)
      assert record['latents'].dtype == record['text'].dtype == kind
      np.testing.assert_array_equal(
        record['latents'], LATENTS[split][i].astype(kind)
      )
      assert record['text'].shape == (6, 7)
      np.testing.assert_array_equal(record['text'][: 1 + i % 3], text(i, kind))
      assert not record['text'][1 + i % 3 :].any()
      assert source.text(i)['caption'] == caption(split, i)
  assert sorted(p.name for p in (tmp_path / 'c').glob('latents*')) == [
    'latents-held_out-00000-of-00001.array_record',
    *(f'latents-train-0000{i}-of-00003.array_record' for i in range(3)),
  ]


def test_continues_after_the_last_complete_shard(tmp_path):
  folder = fill(tmp_path / 'c', kinds=('text',))
  with pytest.raises(ValueError, match='is incomplete: 4 shards are missing'):
    latent_cache.Cache(folder)
  _, name, _ = latent_cache.missing(folder, INFO, 'latents')[1]

  def breaks():
    yield {'latents': LATENTS['train'][0]}
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    latent_cache.write_shard(folder / name, breaks())
  assert len(latent_cache.missing(folder, INFO, 'latents')) == 4
  fill(folder)
  assert not latent_cache.missing(folder, INFO, 'latents')
  latent_cache.Cache(folder)


def test_another_cache_is_refused(tmp_path):
  folder = fill(tmp_path / 'c')
  latent_cache.create(folder, INFO)
  other = dataclasses.replace(INFO, autoencoder='bbbb', shard=3)
  with pytest.raises(
    ValueError, match="another cache; autoencoder: 'aaaa', now 'bbbb'; shard"
  ):
    latent_cache.create(folder, other)
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full/photo.png').write_text('')
  with pytest.raises(ValueError, match='holds files that are not of a cache'):
    latent_cache.create(tmp_path / 'full', INFO)
  with pytest.raises(ValueError, match='cannot be written'):
    latent_cache.create('/proc/none', INFO)


def test_refuses_other_folders(tmp_path):
  with pytest.raises(ValueError, match='not a cache of latents'):
    latent_cache.Cache(tmp_path)
  (tmp_path / latent_cache.FILE).write_text('{"frames": 5}')
  with pytest.raises(ValueError, match='cannot be read.*make the cache again'):
    latent_cache.Cache(tmp_path)
  with pytest.raises(ValueError, match="dtype='int8': expected one of"):
    dataclasses.replace(INFO, dtype='int8')
  with pytest.raises(ValueError, match='shard=0: expected 1 or more'):
    dataclasses.replace(INFO, shard=0)
  values = dataclasses.asdict(INFO) | {'dtype': 'float32'}
  (tmp_path / latent_cache.FILE).write_text(json.dumps(values))
  with pytest.raises(ValueError, match='8 shards are missing'):
    latent_cache.Cache(tmp_path)


@pytest.mark.parametrize(
  'name, value, expected',
  [
    ('counts', [5], r'tuple\[int, int\]'),
    ('counts', [5, -2], r'tuple\[int, int\]'),
    ('frames', '5', 'int'),
    ('length', True, 'int'),
    ('fps', 'fast', 'float'),
    ('fps', 0, 'above 0'),
    ('std', [1, None], 'tuple'),
    ('known', 3, 'str'),
  ],
)
def test_values_of_another_type_are_refused(name, value, expected, tmp_path):
  folder = fill(tmp_path / 'c')
  path = folder / latent_cache.FILE
  path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
  with pytest.raises(
    ValueError, match=f'cache.json cannot be read .{name}=.*expected {expected}'
  ):
    latent_cache.Cache(folder)


def test_files_that_are_missing_or_damaged_are_refused(tmp_path):
  """They are named; nothing is trained on the rest."""
  folder = fill(tmp_path / 'c')
  latent_cache.Cache(folder).check()
  shard = next(folder.glob('latents-train-00001*'))
  held_out = next(folder.glob('latents-held_out*'))
  for path, data, text in (
    (folder / latent_cache.TOKENIZER, None, 'incomplete: tokenizer.model is'),
    (folder / latent_cache.EMPTY, None, 'incomplete: empty.array_record is'),
    (folder / latent_cache.EMPTY, b'', 'empty.array_record is damaged'),
    (folder / latent_cache.SKIPPED, b'{', 'skipped.json cannot be read'),
    (folder / latent_cache.SKIPPED, b'[1]', 'skipped.json cannot be read'),
    (shard, b'', '00001-of-00003.array_record is damaged .*; remove it and'),
    (shard, bytes(2**17), '00001-of-00003.array_record is damaged'),
    (next(folder.glob('latents-train-00002*')), shard, '6 records in 3 shards'),
    (
      folder / latent_cache.SKIPPED,
      b'{"held_out": {"0": "x", "1": "x"}}',
      'has no held_out clips',
    ),
  ):
    before = path.read_bytes() if path.exists() else None
    if data is None:
      path.unlink()
    else:
      path.write_bytes(data if isinstance(data, bytes) else data.read_bytes())
    with pytest.raises(ValueError, match=text):
      latent_cache.Cache(folder).check()
    if path.name == latent_cache.TOKENIZER:  # encoding again repairs it
      latent_cache.create(folder, INFO, tokenizer=before)
      assert path.read_bytes() == before
    elif before is None:
      path.unlink()
    else:
      path.write_bytes(before)
  data = bytearray(held_out.read_bytes())
  at = data.find(b'latents')
  data[at : at + 200] = bytes(200)
  held_out.write_bytes(data)
  with pytest.raises(ValueError, match='record 0 of the cache cannot be read'):
    latent_cache.Cache(folder).split('held_out')[0]


def batches(cache, *, embedded, dropout=0.5, steps=4):
  loader = pipeline.make_loader(
    cache.split('train'),
    tokenizer=tokenizer_lib.train(['train of five clips'], vocab_size=300),
    text_length=24,
    batch_size=3,
    seed=3,
    caption_dropout=dropout,
    empty_SY=cache.empty_SY if embedded else None,
  )
  iterator = iter(loader)
  return [next(iterator) for _ in range(steps)]


def test_a_dropped_caption_is_the_empty_ones_embedding(tmp_path):
  cache = latent_cache.Cache(fill(tmp_path / 'c'))
  np.testing.assert_array_equal(cache.empty_SY[0], 10.0)
  embedded_batches = batches(cache, embedded=True)
  assert set(embedded_batches[0]) == {'latents', 'text'}
  first = np.concatenate([b['text'][:, 0, 0] for b in embedded_batches])
  assert 0 < (first == 10).sum() < len(first)
  tokens = batches(cache, embedded=False)
  alone = np.concatenate([b['tokens'][:, 1] == 0 for b in tokens])
  # The same captions are left out, whatever they are kept as.
  np.testing.assert_array_equal(first == 10, alone)
  for a, b in zip(embedded_batches, tokens, strict=True):
    np.testing.assert_array_equal(a['latents'], b['latents'])
  undropped = batches(cache, embedded=True, dropout=0.0)
  assert not any((b['text'] == 10).any() for b in undropped)


def test_values_that_are_not_finite_are_refused(tmp_path, monkeypatch):
  broken = {split: array.copy() for split, array in LATENTS.items()}
  broken['train'][3, 0, 1, 2, 3] = np.nan
  monkeypatch.setitem(globals(), 'LATENTS', broken)
  fill(tmp_path / 'cache')
  records = latent_cache.Cache(tmp_path / 'cache').split('train')
  assert records[2]['latents'].shape == INFO.latent
  with pytest.raises(ValueError, match='record 3 .*: latents: expected finite'):
    records[3]
