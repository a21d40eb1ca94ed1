"""Training stages: mixtures by tokens, steps, and going on within any stage."""

import collections
import functools

import grain
import numpy as np
import pytest

from experiments import digits_pixels
from spacetime import SettingError, sharding
from spacetime.config import parse
from spacetime.data import batches as batches_lib
from spacetime.data import geometry, packing, stage_batches, stages
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.data.digits import world as world_lib

GRID = functools.partial(geometry.Geometry, stride=(4, 8, 8), patch=(1, 1, 1))
SMALL = stages.Kind(share=1.0, height=16, width=24)
CLIP = stages.Kind(share=3.0, frames=9, height=32, width=16)


def tokens(shape):
  return GRID(*shape).tokens


def test_shares_are_of_tokens():
  stage = stages.Stage(steps=1, mix=(SMALL, CLIP))
  assert tokens((1, 16, 24)) == 6 and tokens((9, 32, 16)) == 24
  np.testing.assert_allclose(stage.chances(tokens), [4 / 7, 3 / 7])


def read(rng, kind, shape):
  video = rng.integers(0, 255, (*shape, 3), np.uint8)
  return {'video': video, 'caption': f'{kind.frames} frames'}


def test_records_depend_on_seed_stage_and_index_alone():
  stage = stages.Stage(steps=1, mix=(SMALL, CLIP), shift=2.0, cond=0.25)
  source = functools.partial(stages.StageSource, stage, chances=(0.5, 0.5))
  one = source(number=1, read=read, seed=3)
  again = source(number=1, read=read, seed=3)
  assert one[5]['shift'] == 2 and one[5]['cond'] == 0.25
  np.testing.assert_array_equal(one[5]['video'], again[5]['video'])
  for other in (one[6], source(number=2, read=read, seed=3)[5]):
    assert not np.array_equal(other['video'], one[5]['video'])
  assert not np.array_equal(
    source(number=1, read=read, seed=4)[5]['video'], one[5]['video']
  )


def numbers(first):
  return grain.MapDataset.range(first, first + 100).to_iter_dataset()


def test_parts_follow_one_another_and_go_on_anywhere():
  data = stage_batches.chain(
    [numbers(0), numbers(100), numbers(200)], [2, 3, 1]
  )
  expected = [0, 1, 100, 101, 102, 200, 201, 202, 203]
  iterator, states = iter(data), []
  for value in expected:
    states.append(iterator.get_state())
    assert next(iterator) == value
  for start, state in enumerate(states):
    other = iter(data)
    next(other)  # what came before is forgotten
    other.set_state(state)
    rest = [next(other) for _ in expected[start:]]
    assert rest == expected[start:], start


def parsed(**changes):
  """The data section of the tiny experiment with changes."""
  plain = parse.plain(digits_pixels.get_config('tiny'))
  plain['data'] |= dict(render='live') | changes
  return parse.experiment(plain).data


STAGES = [
  dict(
    steps=2,
    tokens=24,
    shift=1.5,
    mix=[
      dict(
        framing='window',
        spread=0.0,
        height=16,
        width=16,
        world=dict(max_characters=1, sizes=['small']),
      )
    ],
  ),
  dict(
    steps=1,
    cond=0.0,
    mix=[dict(height=16, width=24), dict(frames=5, height=32, width=32)],
  ),
]
BUCKETS = dict(kind='buckets', look_ahead=50, tokens=48)


def test_batches_of_stages_have_budgets_of_tokens():
  data = parsed(stages=STAGES, packing=BUCKETS, batch_size=2)
  assert data.max_frames == 5
  reader = data.source.stage_reader(data, None)
  record = reader(np.random.default_rng(0), data.stages[0].mix[0], (1, 16, 16))
  assert len(world_lib.from_json(record['scene']).characters) == 1
  splits = data.source.open_splits(data, seed=0)
  tokenizer = tokenizer_lib.train(splits.captions, vocab_size=400)
  make = functools.partial(
    batches_lib.make_loader,
    data,
    splits.train,
    tokenizer,
    length=80,
    seed=0,
    grid=GRID,
  )
  loader = make()
  iterator, shapes = iter(loader), collections.Counter()
  for step in range(12):
    batch = next(iterator)
    shapes[step > 1, batch['frames'].shape[:4]] += 1
    first = step < 2
    assert (batch['shift'] == (1.5 if first else 1)).all()
    assert (batch['cond'] == (1 if first else 0)).all()
    if step == 6:
      state, kept = iterator.get_state(), []
    elif step > 6:
      kept.append(batch)
  # 24 or 48 tokens of 4, 6 and 32: a multiple of two clips, never none.
  assert set(shapes) == {
    (False, (6, 1, 16, 16)),
    (True, (8, 1, 16, 24)),
    (True, (2, 5, 32, 32)),
  }
  # By one process, and by two, each with half of every batch.
  halves = [sharding.DataShare(i, 2, (i,), 2) for i in range(2)]
  others = [iter(make(share=share)) for share in (None, *halves)]
  for other in others:
    other.set_state(state)
  for batch in kept:
    again, *parts = map(next, others)
    assert batch.keys() == again.keys()
    for name in batch:
      np.testing.assert_array_equal(batch[name], again[name])
      both = np.concatenate([part[name] for part in parts])
      np.testing.assert_array_equal(batch[name], both)


def test_rows_hold_clips_of_stages():
  rows = packing.SequencePacking(length=64, clips=5, frames=8, look_ahead=12)
  items = [
    {
      'patches': np.zeros((6, 2), np.float32),
      'grid': np.array([1, 2, 3]),
      'shift': np.float32(n),
    }
    for n in (2, 3)
  ]
  row = packing.collate(items, rows)
  np.testing.assert_array_equal(row['shift'], [2, 3, 0, 0, 0])


KIND = 'data.stages.mix.'


def one(**kind):
  return dict(stages=[dict(steps=1, mix=[kind])])


@pytest.mark.parametrize(
  'change, text',
  [
    (dict(stages=[dict(steps=0, mix=[{}])]), 'data.stages.steps=0: expected'),
    (
      dict(stages=[dict(steps=1, mix=[])]),
      'mix=.*: expected one kind',
    ),
    (dict(stages=[dict(steps=1, mix=[{}], shift=0)]), 'stages.shift=0: expect'),
    (dict(stages=[dict(steps=1, mix=[{}], cond=2)]), 'stages.cond=2: expected'),
    (one(share=0), KIND + 'share=0: expected above 0'),
    (one(framing='far'), KIND + "framing='far': expected one of"),
    (one(spread=2), KIND + 'spread=2: expected 0 to 1'),
    (one(height=0), KIND + 'height=0: expected 1 or more'),
    (one(world=dict(mixed=1)), r'stages\[0\].mix\[0\].world.mixed=1: expected'),
    (
      dict(stages=[dict(step=1, mix=[{}])]),
      r'data.stages\[0\].step=1: .*mean data.stages\[0\].steps',
    ),
    (
      one(size=1),
      r'mix\[0\].size=1: expected one of the keys',
    ),
    (dict(stages=STAGES), '`data.stages` of 3 sizes'),
    (dict(stages=STAGES, render='files'), "data.render='files': expected"),
    (dict(stages=STAGES, crop=(1, 16, 16)), 'data.crop=.* with `data.stages`'),
    (
      dict(stages=STAGES, name='folder', packing=BUCKETS),
      "framing='wide' and no world with",
    ),
    (dict(stages=STAGES, name='cache', packing=BUCKETS), "data.name='cache'"),
  ],
)
def test_refuses(change, text):
  with pytest.raises(SettingError, match=text):
    parsed(**change)
