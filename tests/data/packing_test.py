"""Rows and buckets: complete clips, little padding, resumable."""

import functools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from spacetime.data import packing, packing_plan, pipeline
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.data.geometry import Geometry
from spacetime.data.resolutions import Sizes
from spacetime.models.autoencoder.identity import IdentityAutoencoder
from spacetime.models.transformer import patchify

PATCH = (1, 2, 4)
CODEC = IdentityAutoencoder(4)
ROWS = packing.SequencePacking(length=24, clips=5, frames=9, look_ahead=12)
SIZES = [(1, 2, 4), (5, 2, 8), (9, 4, 4), (5, 6, 8), (1, 8, 8), (13, 2, 4)]


class Mixed:
  """Clip i is filled with i and has one of the sizes."""

  def __init__(self, count=40, sizes=SIZES):
    self.count, self.sizes = count, sizes

  def __len__(self):
    return self.count

  def clip_size(self, index):
    return self.sizes[np.random.default_rng(index).integers(len(self.sizes))]

  def __getitem__(self, index):
    rng, shape = np.random.default_rng(index), self.clip_size(index)
    video_FHWC = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    video_FHWC[0, 0, 0, 0] = index
    return {'video': video_FHWC, 'caption': f'{index}'}


def cut(rows=ROWS):
  def to_patches(array_FHWC):
    z_Bfhwc = CODEC.fold(array_FHWC[None], xp=np)
    return np.asarray(patchify.patchify(z_Bfhwc, PATCH)[0])

  geometry = functools.partial(Geometry, stride=CODEC.stride, patch=PATCH)
  return packing.Patchify(to_patches, geometry, rows)


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizer_lib.train(['seven moves left', '0123456789'], vocab_size=320)


@pytest.fixture
def make(tokenizer):
  def make(how=ROWS, *, count=40, sizes=SIZES, **changes):
    arguments = dict(text_length=9, batch_size=2, seed=7, threads=2)
    source = Mixed(count, sizes)
    return pipeline.make_loader(
      source,
      clip_size=source.clip_size,
      tokenizer=tokenizer,
      packing=how,
      patchify=cut(how) if isinstance(how, packing.SequencePacking) else None,
      caption_dropout=0.0,
      **(arguments | changes),
    )

  return make


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def assert_equal(batches, others):
  assert len(batches) == len(others)
  for one, other in zip(batches, others, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


def clips_of(row):
  """(patches, grid, tokens) of every clip in a row, from what the row says."""
  for number in range(1, row['segment_ids'].max() + 1):
    own_N = row['segment_ids'] == number
    yield row['patches'][own_N], row['grids'][number - 1], own_N, number


def unstack(batch):
  rows = len(batch['segment_ids'])
  return [{name: batch[name][i] for name in batch} for i in range(rows)]


def test_a_row_holds_complete_clips_with_positions(make, tokenizer):
  seen = []
  for batch in take(iter(make()), 6):
    assert batch['patches'].shape == (2, 24, 96)
    assert batch['patches'].dtype == np.uint8
    assert batch['tokens'].shape == (2, 5, 9)
    for row in unstack(batch):
      for x_NV, grid_3, own_N, number in clips_of(row):
        index = int(x_NV[0, 0])
        want_NV = cut().patches(Mixed()[index]['video'])
        np.testing.assert_array_equal(x_NV, want_NV)
        grid = tuple(int(n) for n in grid_3)
        np.testing.assert_array_equal(
          row['positions'][own_N], patchify.positions(grid)
        )
        level_N2 = row['frame_table'][row['frame_ids'][own_N]]
        assert (level_N2[:, 0] == number).all()
        np.testing.assert_array_equal(
          level_N2[:, 1], patchify.positions(grid)[:, 0]
        )
        text_S = tokenizer.encode(f'{index}', length=9)
        np.testing.assert_array_equal(row['tokens'][number - 1], text_S)
        seen.append(index)
      assert not row['patches'][row['segment_ids'] == 0].any()
      assert (row['frame_table'][:, 0] > 0).sum() == row['grids'][:, 0].sum()
      assert not row['tokens'][row['segment_ids'].max() :].any()
  assert len(seen) > 24


def test_patches_on_the_host_are_those_of_the_model():
  video_FHWC = Mixed()[3]['video']
  z_Bfhwc = CODEC.encode({}, jnp.asarray(video_FHWC)[None])
  want_NV = patchify.patchify(z_Bfhwc, PATCH)[0]
  np.testing.assert_array_equal(cut().patches(video_FHWC), want_NV)


def test_one_epoch_has_every_clip_once(make):
  batches = list(iter(make(repeat=False, batch_size=1)))
  seen = [
    int(x_NV[0, 0])
    for batch in batches
    for row in unstack(batch)
    for x_NV, *_ in clips_of(row)
  ]
  assert sorted(seen) == list(range(40))


def test_no_clip_waits_for_ever():
  grids = [(1, 1, 1), *[(3, 2, 4)] * 11]
  assert packing.choose_row(grids, ROWS)[0] == 0
  assert packing.choose_row([(2, 2, 2), (3, 2, 4), (1, 4, 4)], ROWS) == [0, 2]
  frames = packing.SequencePacking(length=24, clips=5, frames=3)
  assert packing.choose_row([(2, 1, 1), (2, 1, 1), (1, 1, 1)], frames) == [0, 2]
  few = packing.SequencePacking(length=24, clips=2, frames=9)
  assert packing.choose_row([(1, 1, 1)] * 5, few) == [0, 1]


def test_padding_of_the_mixed_digits_is_little():
  """The bar is 10 %; measured 1.8 %."""
  sizes, rng = Sizes(volume=49 * 64 * 64), np.random.default_rng(0)
  rows = packing.SequencePacking(length=256, clips=4, frames=24)

  def grid():
    return Geometry(*sizes.draw(rng), (4, 1, 1), (1, 16, 16)).grid

  row = packing.measure(
    rows, iter(grid, None), count=300, cost=lambda grid: 2.0 * math.prod(grid)
  )
  assert row.padding < 0.03 and 2.3 < row.clips < 2.7
  assert row.cost == pytest.approx(2 * 256 * (1 - row.padding))


BUCKETS = packing.Buckets(look_ahead=13)


@pytest.mark.slow
@pytest.mark.parametrize('how', [ROWS, BUCKETS], ids=['rows', 'buckets'])
@pytest.mark.parametrize('threads', [0, 3])
def test_resumes_where_it_was(make, how, threads):
  """Over the end of an epoch too."""
  changes = dict(threads=threads, batch_size=3)
  full = take(iter(make(how, **changes)), 14)
  iterator = iter(make(how, **changes))
  take(iterator, 9)
  position = json.loads(json.dumps(iterator.get_state()))
  next(iterator)
  other = iter(make(how, **changes))
  other.set_state(position)
  assert_equal(full[9:], take(other, 5))
  iterator.set_state(position)
  assert_equal(full[9:], take(iterator, 5))


def test_a_position_of_an_earlier_version_is_refused(make):
  iterator = iter(make(ROWS, batch_size=3))
  with pytest.raises(ValueError, match='that of an earlier version'):
    iterator.set_state({'next_index': 9, 'items': []})


def joined(parts, held):
  """The global batches of processes that hold these rows, of two each time."""
  batches = []
  for shares in zip(*parts, strict=True):
    count = sum(len(share['tokens']) for share in shares)
    per = count // sum(map(len, held))
    batch = {}
    for name, value in shares[0].items():
      batch[name] = np.zeros((count, *value.shape[1:]), value.dtype)
      for share, rows in zip(shares, held, strict=True):
        rows = [row * per + i for row in rows for i in range(per)]
        batch[name][rows] = share[name]
    batches.append(batch)
  return batches


def of_processes(make, how, held, **changes):
  """The iterators of processes that hold these rows of a batch."""
  return [
    iter(
      make(
        how,
        batch_size=len(rows),
        rows=rows,
        process_index=index,
        process_count=len(held),
        **changes,
      )
    )
    for index, rows in enumerate(held)
  ]


def per_size(factor):
  """A process's clips of a batch: twice as many of images."""
  return lambda size: factor * (2 if size[0] == 1 else 1)


HELD = {
  1: [(0, 1, 2, 3)],
  2: [(0, 1), (2, 3)],
  # As on v5p: a host's devices hold rows that are no run of the batch.
  'v5p': [(0, 2), (1, 3)],
  4: [(0,), (1,), (2,), (3,)],
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['rows', 'buckets', 'buckets of tokens'])
def test_batches_are_the_same_on_any_number_of_processes(make, kind):
  """Also after a stop, whose position fits any number of processes."""
  how = ROWS if kind == 'rows' else packing.Buckets(look_ahead=40)

  def started(held):
    budget = per_size(len(held[0])) if kind.endswith('tokens') else None
    return of_processes(make, how, held, batch=budget)

  full = take(started(HELD[1])[0], 12)
  stopped = []
  for held in HELD.values():
    iterators = started(held)
    parts = [take(iterator, 7) for iterator in iterators]
    assert_equal(full[:7], joined(parts, held))
    states = [json.dumps(iterator.get_state()) for iterator in iterators]
    assert len(set(states)) == 1
    stopped.append(json.loads(states[0]))
  for state in stopped:
    assert state == stopped[0]
  for held in HELD.values():
    iterators = started(held)
    for iterator in iterators:
      iterator.set_state(stopped[0])
    parts = [take(iterator, 5) for iterator in iterators]
    assert_equal(full[7:], joined(parts, held))


@pytest.mark.parametrize('rows', [0, 2])
def test_a_slice_of_a_plan_has_some_of_its_batches(rows):
  """As processes that prepare batches have, each with its own state."""
  make_buffer = (
    functools.partial(packing_plan.RowBuffer, ROWS, cut().geometry)
    if rows
    else functools.partial(packing_plan.BucketBuffer, BUCKETS, lambda _: 3)
  )
  sizes = Mixed().clip_size
  plan = packing_plan.Plan(sizes, 400, make_buffer, rows=rows)
  full = take(iter(plan), 9)
  for number in range(2):
    plan.set_slice(slice(number, None, 2))
    iterator = iter(plan)
    start = json.loads(json.dumps(iterator.get_state()))
    assert take(iterator, 2) == full[number::2][:2]
    other = iter(plan)
    other.set_state(json.loads(json.dumps(iterator.get_state())))
    assert take(other, 2) == full[number::2][2:4]
    other.set_state(start)
    assert take(other, 4) == full[number::2][:4]


class Counted(Mixed):
  """Remembers which clips have been read."""

  def __init__(self, *args):
    super().__init__(*args)
    self.read = []

  def __getitem__(self, index):
    self.read.append(index)
    return super().__getitem__(index)


def test_only_the_clips_of_own_rows_are_read(tokenizer):
  """And only those of the next batch ahead, however long the buffer is."""
  source = Counted(250)
  rows = packing.SequencePacking(24, 5, 9, look_ahead=200)
  loader = pipeline.make_loader(
    source,
    clip_size=source.clip_size,
    tokenizer=tokenizer,
    packing=rows,
    patchify=cut(rows),
    text_length=9,
    batch_size=1,
    seed=7,
    process_index=1,
    process_count=4,
    threads=2,
    buffer=1,
  )
  clips = sum(int((b['grids'] > 0).any(2).sum()) for b in take(iter(loader), 3))
  # The first clip is read to know its kind, and three batches ahead at most.
  assert clips < len(source.read) <= 1 + clips + 3 * rows.clips


def test_seed_decides(make):
  one, same, other = (
    take(iter(make(seed=s, threads=t)), 5) for s, t in ((1, 0), (1, 4), (2, 0))
  )
  assert_equal(one, same)
  assert any(
    (a['segment_ids'] != b['segment_ids']).any()
    for a, b in zip(one, other, strict=True)
  )


def test_a_bucket_has_one_size(make):
  shapes = set()
  for batch in take(iter(make(BUCKETS, batch_size=3)), 20):
    assert batch['frames'].shape[0] == batch['tokens'].shape[0] == 3
    shapes.add(batch['frames'].shape[1:4])
  assert shapes == set(SIZES)
  BUCKETS.check(sizes=6, batch=3)
  with pytest.raises(ValueError, match='look_ahead=13: expected 19 or more'):
    BUCKETS.check(sizes=6, batch=4)


def test_refuses(make):
  with pytest.raises(ValueError, match='data.packing.length=0: expected 1 or'):
    packing.SequencePacking(length=0, clips=1, frames=1)
  with pytest.raises(ValueError, match='length=12: expected 18 or more'):
    sizes = [(5, 6, 12)]
    short = packing.SequencePacking(length=12, clips=2, frames=9)
    next(iter(make(short, sizes=sizes)))
  with pytest.raises(ValueError, match='frames=6: expected 7 or more'):
    sizes = [(25, 2, 4)]
    few = packing.SequencePacking(length=12, clips=2, frames=6)
    next(iter(make(few, sizes=sizes)))
  with pytest.raises(ValueError, match='height=3: expected a multiple of 2'):
    next(iter(make(sizes=[(5, 3, 4)])))
  with pytest.raises(ValueError, match='look_ahead=4: expected 9 or more'):
    take(iter(make(packing.Buckets(4), batch_size=3)), 9)
