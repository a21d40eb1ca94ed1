"""The training loop: steps in flight, and errors of the data."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import sharding
from spacetime.training import feed, goodput, loop
from spacetime.training import state as state_lib
from tests.helpers import slow_run


@pytest.mark.slow
def test_a_signal_is_followed_by_at_most_two_steps():
  """SIGTERM at a random moment, 20 times; most steps are not logged."""
  for run in slow_run.trials(20, 0.02):
    assert run.signalled and run.saved[0] > run.signalled
    assert run.steps_until_save <= 2
    # All that is counted and saved has ended.
    assert run.steps == run.saved[1] == run.finished


class Recorder:
  """Checkpoints, a writer and an action that record what they see."""

  def __init__(self):
    self.saved, self.lines = [], []

  def save(self, step, state, **kwargs):
    del kwargs
    self.saved.append((step, int(state.step)))

  def write(self, step, values):
    self.lines.append((step, values))

  def flush(self):
    pass


def counted(batches, **changes):
  """Runs a step that counts: (recorder, goodput)."""

  def step(state, frozen, batch, key):
    del frozen, key
    moved = dataclasses.replace(state, step=state.step + 1)
    return moved, {'loss': batch['x'].sum()}

  mesh, record, time_log = (
    sharding.single_device_mesh(),
    Recorder(),
    goodput.Goodput(),
  )
  zero = jax.device_put(
    jnp.zeros((), jnp.int32), jax.sharding.NamedSharding(mesh, jax.P())
  )
  settings = {
    'key': jax.random.key(0),
    'mesh': mesh,
    'steps': 5,
    'log_every': 2,
    'writer': record,
    'checkpoints': record,
    'checkpoint_every': 0,
    'time_log': time_log,
    'rates': lambda batch: loop.Rates(clips=len(batch['x'])),
  }
  try:
    loop.run(
      step,
      state_lib.State(zero, {}, {}, ()),
      {},
      batches,
      **(settings | changes),
    )
  finally:
    record.counted = time_log.step, time_log.taken
    counted.last = record
  return record


def batches(error=None):
  for i in range(3):
    yield {'x': np.full(2, i, np.float32)}
  if error:
    raise error
  while True:
    yield {'x': np.zeros(2, np.float32)}


def test_all_steps_are_counted_and_logged():
  record = counted(batches(), checkpoint_every=4)
  assert record.saved == [(4, 4), (5, 5)]
  assert record.counted == (5, 5)
  losses = {step: values['loss'] for step, values in record.lines}
  assert losses == {2: 2.0, 4: 0.0, 5: 0.0}


def test_rates_are_of_the_batches_that_were_trained():
  """Whose clips may differ in number: 6 and 2 in steps 3 and 4."""
  rows = ({'x': np.zeros(n, np.float32)} for n in (2, 2, 6, 2, 4, 5))
  record = counted(rows, steps=6)
  means = {
    step: values['clips_per_second'] * values['step_seconds']
    for step, values in record.lines
    if 'step_seconds' in values
  }
  assert means == {4: pytest.approx(4), 6: pytest.approx(4.5)}


@pytest.mark.parametrize(
  'error', [ValueError('a.mp4 cannot be read'), OSError('gone')]
)
def test_an_error_of_the_data_is_raised_after_a_save(error):
  with pytest.raises(type(error), match=str(error)):
    counted(batches(error))
  record = counted.last
  assert record.saved == [(3, 3)] and record.counted == (3, 3)
  assert [step for step, _ in record.lines] == [2]


def test_steps_before_an_error_stay_counted(tmp_path):
  """Also where the last lines of metrics came before them."""
  with pytest.raises(OSError):
    counted(batches(OSError('gone')), time_log=goodput.Goodput(tmp_path))
  report = json.loads((tmp_path / goodput.FILE).read_text())
  assert (report['step'], report['taken']) == (3, 3)


def test_an_error_of_the_first_batch_saves_nothing():
  def fails():
    raise ValueError('no clip')
    yield

  with pytest.raises(ValueError, match='no clip'):
    counted(fails())
  assert counted.last.saved == []


class Positioned:
  """`batches` with a position, as loaders have it."""

  def __init__(self, error=None):
    self._batches, self.read = batches(error), 0

  def __iter__(self):
    return self

  def __next__(self):
    batch = next(self._batches)
    self.read += 1
    return batch

  def get_state(self):
    return {'read': self.read}


class Saved(Recorder):
  """Records the position in the data, too."""

  def save(self, step, state, *, iterator, **kwargs):
    super().save(step, state, **kwargs)
    self.position = iterator.get_state()


def shared(monkeypatch, *, other=None):
  """Feeds the loop as one of several processes, of which another can take the
  first `other` steps."""

  class Feed(feed.SharedFeed):
    def put(self, batch, mesh):
      values = super().put(batch, mesh)
      # As the other sends it, which has read two batches ahead.
      if other and self.iterator._step + feed.AHEAD > other[0]:
        limits = values[feed.LIMIT]
        values[feed.LIMIT] = jax.device_put(
          np.full(limits.shape, 2 * other[0] + other[1], np.int32),
          limits.sharding,
        )
      return values

  monkeypatch.setattr(
    loop.feed_lib,
    'Feed',
    lambda iterator, receive: Feed(iterator, receive, step=0),
  )
  return Saved()


def test_batches_are_read_ahead_and_saved_where_they_are_used(monkeypatch):
  data, saved = Positioned(), shared(monkeypatch)
  record = counted(data, checkpoints=saved, checkpoint_every=4)
  assert saved.saved == [(4, 4), (5, 5)] and saved.position == {'read': 5}
  assert data.read == 5 + feed.AHEAD
  losses = {step: values['loss'] for step, values in record.lines}
  assert losses == {2: 2.0, 4: 0.0, 5: 0.0}
  assert all(feed.LIMIT not in values for _, values in record.lines)


@pytest.mark.parametrize('error', [ValueError('a.mp4'), OSError('gone')])
def test_own_data_error_of_several_processes_saves(monkeypatch, error):
  saved = shared(monkeypatch)
  with pytest.raises(type(error), match=str(error)):
    counted(Positioned(error), checkpoints=saved)
  assert saved.saved == [(3, 3)] and saved.position == {'read': 3}
  assert counted.last.counted == (3, 3)


@pytest.mark.parametrize('last', [2, 3, 4])
@pytest.mark.parametrize('kind', [ValueError, OSError])
def test_data_error_elsewhere_saves(monkeypatch, last, kind):
  saved = shared(monkeypatch, other=(last, kind is OSError))
  with pytest.raises(kind, match='data of another process failed'):
    counted(Positioned(), checkpoints=saved)
  assert saved.saved == [(last, last)] and saved.position == {'read': last}


def test_read_ahead_resumes_at_its_position():
  ahead = feed.ReadAhead(Positioned(), lambda batch: batch, step=7)
  assert ahead.limit > 10**9 and ahead.get_state() == {'read': 0}
  assert float(next(ahead)['x'][0]) == 0 and ahead.get_state() == {'read': 1}
  ahead = feed.ReadAhead(Positioned(OSError()), lambda batch: batch, step=7)
  for _ in range(3):
    next(ahead)
  assert ahead.limit == 2 * 10 + 1  # three steps more, and a restart may help
  with pytest.raises(OSError):
    next(ahead)
