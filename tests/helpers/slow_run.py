"""A run of slow steps that is preempted: by how much a signal is late."""

import contextlib
import dataclasses
import functools
import os
import random
import signal
import threading
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from spacetime import sharding
from spacetime.sharding import multihost
from spacetime.training import goodput, loop
from spacetime.training import state as state_lib

WORK = 20_000  # values that a step computes, over and over


@dataclasses.dataclass
class Run:
  """What a run did, in order of time (monotonic seconds).

  Attributes:
    dispatched: the loss of each step, on the device.
    signalled: when the signal was sent.
    ended: steps that had ended then.
    saved: when the save began, with the steps that it holds.
    steps: finished steps that were counted before the save.
  """

  dispatched: list[jax.Array] = dataclasses.field(default_factory=list)
  signalled: float = 0.0
  ended: int = 0
  saved: tuple[float, int] = (0.0, 0)
  steps: int = 0

  @property
  def steps_until_save(self) -> int:
    """Saved steps that had not ended when the signal was sent."""
    return self.saved[1] - self.ended

  @property
  def finished(self) -> int:
    """Steps that have ended by now."""
    return sum(loss.is_ready() for loss in self.dispatched)


def preempted(
  seconds: float, *, log_every: int, steps: int, after: float
) -> Run:
  """Trains with steps of so many seconds, and sends SIGTERM so many seconds
  after the first."""
  run, rounds = Run(), _rounds(seconds)

  def step(state, frozen, batch, key):
    del frozen, key
    busy = jax.lax.fori_loop(
      0, batch['rounds'][0], lambda _, x: jnp.sin(x) + 1, batch['x']
    )
    loss = jnp.sum(busy) + state.params['w']
    moved = dataclasses.replace(state, step=state.step + 1)
    return moved, {'loss': loss}

  def recorded(*args):
    """The compiled step, whose losses are kept."""
    compiled = jit_step(*args)

    def call(*args):
      state, metrics = compiled(*args)
      run.dispatched.append(metrics['loss'])
      return state, metrics

    return call

  jit_step = loop.jit_step

  class Checkpoints:
    def save(self, step, state, **kwargs):
      del state, kwargs
      run.saved, run.steps = (time.monotonic(), step), time_log.step

  def terminate():
    run.signalled, run.ended = time.monotonic(), run.finished
    os.kill(os.getpid(), signal.SIGTERM)

  def batches():
    while True:
      yield {'x': np.zeros(WORK, np.float32), 'rounds': np.full(1, rounds)}

  mesh, time_log = sharding.single_device_mesh(), goodput.Goodput()
  zero = jax.device_put(
    jnp.zeros(()), jax.sharding.NamedSharding(mesh, jax.P())
  )
  state = state_lib.State(zero.astype(jnp.int32), {'w': zero}, {}, ())
  timer = threading.Timer(after, terminate)
  with _signals(), mock.patch.object(loop, 'jit_step', recorded):
    requested = multihost.Stop()

    def stop():
      if timer.ident is None:  # the first step has been compiled
        timer.start()
      return requested()

    try:
      loop.run(
        step,
        state,
        {},
        batches(),
        key=jax.random.key(0),
        mesh=mesh,
        steps=steps,
        log_every=log_every,
        writer=_Silent(),
        checkpoints=Checkpoints(),
        checkpoint_every=0,
        time_log=time_log,
        rates=lambda batch: loop.Rates(clips=1),
        stop=stop,
      )
    finally:
      timer.join()
  return run


@functools.cache
def _rounds(seconds: float) -> int:
  """Rounds of work that take so long, by the least of some trials."""
  work = jax.jit(
    lambda n: jax.lax.fori_loop(
      0, n, lambda _, x: jnp.sin(x) + 1, jnp.zeros(WORK)
    )
  )
  work(1).block_until_ready()
  spent = []
  for _ in range(3):
    began = time.monotonic()
    work(50).block_until_ready()
    spent.append(time.monotonic() - began)
  return max(round(50 * seconds / min(spent)), 1)


def trials(
  times: int, seconds: float, *, log_every: int = 10, seed: int = 0
) -> list[Run]:
  """So many runs, each with a signal at a random moment of its steps."""
  draw = random.Random(seed)
  return [
    preempted(
      seconds,
      log_every=log_every,
      steps=1_000_000,  # the signal ends it, however slow the machine is
      after=seconds * draw.uniform(0, 2 * log_every),
    )
    for _ in range(times)
  ]


class _Silent:
  """A writer of metrics that writes nothing."""

  def write(self, *args):
    pass

  def flush(self):
    pass


@contextlib.contextmanager
def _signals():
  """Restores the handlers that a run replaces."""
  names = signal.SIGTERM, signal.SIGINT
  handlers = [signal.getsignal(name) for name in names]
  try:
    yield
  finally:
    for name, handler in zip(names, handlers, strict=True):
      signal.signal(name, handler)
