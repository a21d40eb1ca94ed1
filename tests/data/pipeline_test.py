"""The loader: deterministic, sharded, resumable, with dropout and crops."""

import collections
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from spacetime.data import pipeline
from spacetime.data import tokenizer as tokenizer_lib

SIZE = (5, 6, 8)


class Numbered:
  """Clip i is filled with i, but for its coordinates in the last channel."""

  def __init__(self, count, size=SIZE, caption='seven moves left'):
    self.count, self.size, self.caption = count, size, caption

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    video_FHWC = np.full((*self.size, 3), index % 256, np.uint8)
    F, H, W = self.size
    video_FHWC[..., 2] = np.arange(F * H * W).reshape(self.size) % 256
    return {'video': video_FHWC, 'caption': self.caption, 'other': 1}


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizer_lib.train(['seven moves left', 'eight'], vocab_size=320)


@pytest.fixture
def make(tokenizer):
  def make(source, **changes):
    arguments = {'text_length': 23, 'batch_size': 4, 'seed': 7, 'threads': 2}
    return pipeline.make_loader(
      source, tokenizer=tokenizer, **(arguments | changes)
    )

  return make


def take(loader, count):
  iterator = iter(loader)
  return [next(iterator) for _ in range(count)]


def ids(batches):
  return [int(i) for b in batches for i in b['frames'][:, 0, 0, 0, 0]]


def assert_equal(batches, others):
  assert len(batches) == len(others)
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name])


def test_batches(make, tokenizer):
  (batch,) = take(make(Numbered(9), caption_dropout=0.0, size=SIZE), 1)
  assert batch.keys() == {'frames', 'tokens'}
  assert batch['frames'].shape == (4, *SIZE, 3)
  assert batch['frames'].dtype == np.uint8
  assert batch['tokens'].dtype == np.int32
  want_S = tokenizer.encode('seven moves left', length=23)
  np.testing.assert_array_equal(batch['tokens'], np.stack([want_S] * 4))


def test_captions_as_bytes(make):
  taken = take(make(Numbered(9), caption_dropout=0.0), 2)
  as_bytes = Numbered(9, caption=b'seven moves left')
  assert_equal(taken, take(make(as_bytes, caption_dropout=0.0), 2))


def test_seed_decides_all(make):
  source, crop = Numbered(50), (3, 4, 5)
  one, same, other = (
    take(make(source, seed=s, crop=crop, caption_dropout=0.5, threads=t), 9)
    for s, t in ((1, 0), (1, 4), (2, 0))
  )
  assert_equal(one, same)
  assert ids(one) != ids(other)


def test_epochs_are_complete_and_differ(make):
  seen = ids(take(make(Numbered(12)), 6))
  first, second = seen[:12], seen[12:]
  assert sorted(first) == sorted(second) == list(range(12))
  assert first != second


def test_source_order_without_shuffle(make):
  assert ids(take(make(Numbered(6), shuffle=False), 3)) == [*range(6)] * 2


def test_one_epoch_without_repeat(make):
  loaders = [
    make(
      Numbered(26),
      batch_size=3,
      repeat=False,
      process_index=i,
      process_count=3,
    )
    for i in range(3)
  ]
  counts = [len(list(iter(loader))) for loader in loaders]
  assert counts == [2, 2, 2]
  seen = [i for loader in loaders for i in ids(list(iter(loader)))]
  assert len(set(seen)) == len(seen) == 18


@pytest.mark.parametrize(
  'count, held',
  [
    (2, None),
    (4, None),
    # As on v5p: a host's devices hold rows that are no run of the batch.
    (2, [(0, 1, 4, 5), (2, 3, 6, 7)]),
    (4, [(0, 4), (1, 5), (2, 6), (3, 7)]),
  ],
)
def test_processes_make_the_batch_of_one(make, count, held):
  """The same clips, crops and dropped captions, in the same order."""
  shared = {'crop': (2, 3, 4), 'caption_dropout': 0.4}
  complete = take(make(Numbered(21), batch_size=8, **shared), 5)
  runs = np.arange(8).reshape(count, -1).tolist()
  parts = [
    take(
      make(
        Numbered(21),
        batch_size=8 // count,
        process_index=i,
        process_count=count,
        rows=held and held[i],
        **shared,
      ),
      5,
    )
    for i in range(count)
  ]
  for step, batch in enumerate(complete):
    for rows, part in zip(held or runs, parts, strict=True):
      for name in batch:
        np.testing.assert_array_equal(batch[name][list(rows)], part[step][name])


def test_a_position_in_the_data_fits_any_number_of_processes(make):
  one = iter(make(Numbered(21), batch_size=8))
  for _ in range(3):
    next(one)
  state = one.get_state()
  parts = [
    iter(make(Numbered(21), batch_size=4, process_index=i, process_count=2))
    for i in range(2)
  ]
  for part in parts:
    part.set_state(state)
  for _ in range(3):
    batch, shares = next(one), [next(part) for part in parts]
    for name in batch:
      np.testing.assert_array_equal(
        batch[name], np.concatenate([share[name] for share in shares])
      )


def test_dropout_share(make, tokenizer):
  batches = take(make(Numbered(200), batch_size=100, caption_dropout=0.1), 40)
  tokens_BS = np.concatenate([b['tokens'] for b in batches])
  dropped = (tokens_BS == tokenizer.encode('', length=23)).all(axis=1)
  # 4000 draws: five standard deviations are 0.024.
  assert abs(dropped.mean() - 0.1) < 0.024
  for share in (0.0, 1.0):
    (batch,) = take(make(Numbered(20), caption_dropout=share), 1)
    assert ((batch['tokens'][:, 0] == 1) == bool(share)).all()


def test_crops_are_contiguous_and_uniform(make):
  source, crop = Numbered(100), (3, 4, 5)
  batches = take(make(source, batch_size=50, crop=crop), 40)
  F, H, W = SIZE
  grid_FHW = np.arange(F * H * W).reshape(SIZE) % 256
  corners = collections.Counter()
  for batch in batches:
    assert batch['frames'].shape == (50, *crop, 3)
    for clip_FHW in batch['frames'][..., 2]:
      a, b, c = np.unravel_index(int(clip_FHW[0, 0, 0]), SIZE)
      want_FHW = grid_FHW[a : a + 3, b : b + 4, c : c + 5]
      np.testing.assert_array_equal(clip_FHW, want_FHW)
      corners[a, b, c] += 1
  # 3 x 3 x 4 places, 2000 crops: 55.6 each, six standard deviations are 44.
  assert len(corners) == 36
  assert all(abs(n - 55.6) < 44 for n in corners.values())


@pytest.mark.parametrize('threads', [0, 3])
def test_resumes_where_it_was(make, threads):
  loader = make(Numbered(30), crop=(2, 3, 4), threads=threads)
  complete = take(loader, 9)
  iterator = iter(loader)
  for _ in range(4):
    next(iterator)
  position = json.loads(json.dumps(iterator.get_state()))
  next(iterator)
  other = iter(make(Numbered(30), crop=(2, 3, 4), threads=threads))
  other.set_state(position)
  assert_equal(complete[4:], [next(other) for _ in range(5)])


@pytest.mark.slow
def test_worker_processes_give_the_same(make):
  """In a process of its own, since the workers import it anew."""
  program = """
import multiprocessing, sys, time
from absl import flags
from spacetime.data import pipeline, tokenizer
from tests.data import packing_test as packed
from tests.data import pipeline_test as t
def children():
  return {child.pid for child in multiprocessing.active_children()}
if __name__ == '__main__':
  flags.FLAGS(sys.argv[:1])
  text = tokenizer.train(['seven moves left'], vocab_size=320)
  batches = [
    t.take(pipeline.make_loader(t.Numbered(21), tokenizer=text, text_length=23,
      batch_size=4, seed=3, threads=1, crop=(2, 3, 4), workers=n), 7)
    for n in (0, 2)
  ]
  t.assert_equal(*batches)
  loader = pipeline.make_loader(t.Numbered(21), tokenizer=text, text_length=23,
    batch_size=4, seed=3, threads=1, crop=(2, 3, 4), workers=2)
  for place in None, iter(loader).get_state():
    iterator = iter(loader)
    if place:
      iterator.set_state(place)
    # By their numbers: those of the iterator before may end meanwhile.
    before, new, end = children(), set(), time.monotonic() + 20
    pipeline.start(iterator)
    while len(new) < 2 and time.monotonic() < end:  # threads start them
      new |= children() - before
      time.sleep(0.05)
    print(len(new), 'started')
    t.assert_equal([next(iterator) for _ in range(7)], batches[0])
  source = packed.Mixed()
  one, two = (
    t.take(pipeline.make_loader(source, clip_size=source.clip_size,
      packing=packed.BUCKETS, tokenizer=text, text_length=9, batch_size=3,
      seed=3, threads=1, workers=n), 6)
    for n in (0, 2)
  )
  t.assert_equal(one, two)
  print('equal')
"""
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.stdout == '2 started\n2 started\nequal\n', done.stderr


def test_no_bottleneck(tokenizer):
  """1500 clips of 17x64x64 a second; measured: 10,000 on one busy core."""
  source = Numbered(1000, size=(17, 64, 64))
  source.clip = source[3]
  source.__class__ = type(
    'Cached', (Numbered,), {'__getitem__': lambda self, _: self.clip}
  )
  loader = pipeline.make_loader(
    source, tokenizer=tokenizer, text_length=32, batch_size=32, seed=0
  )
  iterator = iter(loader)
  next(iterator)
  start = time.process_time()
  for _ in range(30):
    next(iterator)
  assert 30 * 32 / (time.process_time() - start) > 1500


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'rows': (0, 1, 2)}, '3 rows: expected batch_size=4'),
    ({'batch_size': 0}, 'batch_size=0: expected at least 1'),
    ({'text_length': 0}, 'text_length=0: expected at least 1'),
    ({'process_count': 0}, 'process_count=0: expected at least 1'),
    ({'threads': -1}, 'threads=-1: expected 0 or more'),
    ({'buffer': -1}, 'buffer=-1: expected 0 or more'),
    ({'workers': -2}, 'workers=-2: expected 0 or more'),
    ({'seed': -1}, 'seed=-1: expected 0 to 2'),
    ({'seed': 2**32}, 'seed=4294967296: expected'),
    ({'caption_dropout': 1.5}, 'caption_dropout=1.5: expected 0 to 1'),
    (
      {'process_index': 2, 'process_count': 2},
      'process_index=2: expected 0 to process_count - 1 = 1',
    ),
    (
      {'size': (5, 8, 6)},
      r'\(5, 6, 8\); expected \(5, 8, 6\)',
    ),
    ({'crop': (5, 7, 8)}, r'data.crop=\(5, 7, 8\): expected at most'),
    (
      {'batch_size': 8, 'process_count': 2, 'repeat': False},
      'source has 9 records; expected at least 16',
    ),
  ],
)
def test_bad_arguments(make, changes, message):
  with pytest.raises(ValueError, match=message):
    make(Numbered(9), **changes)


def test_bad_records(make):
  with pytest.raises(ValueError, match='source has 0 records; expected at'):
    make(Numbered(0))
  video_FHWC = np.zeros((5, 6, 8, 3), np.uint8)
  with pytest.raises(ValueError, match=r"record has \['video'\]; expected vid"):
    make([{'video': video_FHWC}])
  for bad, message in (
    (video_FHWC.astype(np.float32), r'video is float32 \(5, 6, 8, 3\)'),
    (video_FHWC[..., :2], r'video is uint8 \(5, 6, 8, 2\); expected uint8'),
  ):
    with pytest.raises(ValueError, match=message):
      make([{'video': bad, 'caption': ''}])


def test_a_later_bad_clip_is_refused(make):
  source = [Numbered(3)[0], Numbered(3, size=(5, 6, 7))[0]]
  loader = make(source, size=SIZE, shuffle=False)
  with pytest.raises(ValueError, match=r'has .* \(5, 6, 7\); expected \(5, 6'):
    take(loader, 1)
