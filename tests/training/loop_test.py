"""The training loop: steps in flight, and errors of the data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import sharding
from spacetime.training import goodput, loop
from spacetime.training import state as state_lib
from tests.helpers import slow_run


def test_a_signal_is_followed_by_at_most_two_steps():
  """SIGTERM at a random moment, 20 times; most steps are not logged."""
  for run in slow_run.trials(20, 0.02):
    assert run.signalled and run.saved[0] > run.signalled
    assert run.steps_until_save <= 2
    # All that is counted and saved has ended.
    assert run.steps == run.saved[1] == len(run.finished)


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
    'rates': loop.Rates(clips=1),
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


@pytest.mark.parametrize(
  'error', [ValueError('a.mp4 cannot be read'), OSError('gone')]
)
def test_an_error_of_the_data_is_raised_after_a_save(error):
  with pytest.raises(type(error), match=str(error)):
    counted(batches(error))
  record = counted.last
  assert record.saved == [(3, 3)] and record.counted == (3, 3)
  assert [step for step, _ in record.lines] == [2]


def test_an_error_of_the_first_batch_saves_nothing():
  def fails():
    raise ValueError('no clip')
    yield

  with pytest.raises(ValueError, match='no clip'):
    counted(fails())
  assert counted.last.saved == []
