"""Batches of a run, up to the step before which the data of a process fail.

A process without a batch cannot take part in a step, and the others would wait
for it in a collective operation. Therefore each of several processes reads its
batches ahead and sends, with every batch, the last step that it can take. The
step finds the least of these on the devices, so that all processes know it
before they dispatch a step that one of them cannot take.
"""

import collections
import copy
from collections.abc import Callable, Iterator

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from spacetime import sharding

# Key of a batch and of the metrics: twice the last step that can be taken, plus
# one if the data failed for a reason that may be gone at the next start.
LIMIT = 'data_limit'
# The limits sent with step n are known once step n + 1 is dispatched, so that
# they have to be right for step n + 2.
AHEAD = 2
_NO_LIMIT = 2**30 - 1


class Feed:
  """The batches of a single process.

  Args:
    iterator: batches of numpy arrays.
    receive: called with each batch; returns the one to train on.

  Attributes:
    iterator: what a checkpoint saves: its state is the position after the last
      batch that was trained on.
    error: of the data, which ended the run.
  """

  def __init__(self, iterator: Iterator, receive: Callable[[dict], dict]):
    self.iterator, self._receive = iterator, receive
    self.error: Exception | None = None

  def step(self, step_fn: Callable) -> Callable:
    """The step, as it is compiled."""
    return step_fn

  def read(self, step: int) -> dict | None:
    """The batch of a step; None, with `error`, if the data have failed."""
    del step
    try:
      return self._receive(next(self.iterator))
    except Exception as e:
      self.error = e
      return None

  def put(self, batch: dict, mesh: jax.sharding.Mesh) -> dict:
    """The batch as global arrays."""
    return sharding.put_batch(batch, mesh)

  def exchange(self, metrics: dict) -> None:
    """Called with the metrics of each dispatched step, once the step before it
    has ended."""


class SharedFeed(Feed):
  """The batches of one of several processes, which all end at the same step.

  Args:
    iterator: see Feed.
    receive: see Feed.
    step: number of finished steps.
  """

  def __init__(
    self, iterator: Iterator, receive: Callable[[dict], dict], *, step: int
  ):
    super().__init__(ReadAhead(iterator, receive, step=step), lambda x: x)
    own = self.iterator.limit
    self._limit = int(np.min(multihost_utils.process_allgather(np.int32(own))))
    self._sent = None

  def step(self, step_fn: Callable) -> Callable:
    """The step with the least limit among its metrics."""

    def step(state, frozen, batch, key):
      batch = dict(batch)
      limit = jnp.min(batch.pop(LIMIT))
      state, metrics = step_fn(state, frozen, batch, key)
      return state, metrics | {LIMIT: limit}

    return step

  def read(self, step: int) -> dict | None:
    """The batch of a step; None, with `error`, if one process has none."""
    if step <= self._limit // 2:
      return next(self.iterator)
    self.error = self.iterator.error or _error_elsewhere(self._limit)
    return None

  def put(self, batch: dict, mesh: jax.sharding.Mesh) -> dict:
    """The batch as global arrays, with the limit of this process."""
    limit = np.full(1, self.iterator.limit, np.int32)
    limits = jax.make_array_from_callback(
      (mesh.size,),
      NamedSharding(mesh, PartitionSpec(mesh.axis_names)),
      lambda index: limit,
    )
    return super().put(batch, mesh) | {LIMIT: limits}

  def exchange(self, metrics: dict) -> None:
    """Reads the limit of the step before; keeps that of this one."""
    if self._sent is not None:
      self._limit = min(self._limit, int(jax.device_get(self._sent)))
    self._sent = metrics.pop(LIMIT)


class ReadAhead(grain.DatasetIterator):
  """Reads AHEAD batches more than it returns.

  Its state is the position after the last batch that was returned.

  Args:
    parent: iterator of the loader.
    receive: called with each batch; returns the one to train on.
    step: number of finished steps.

  Attributes:
    error: raised by the parent or by `receive`.
  """

  def __init__(
    self, parent: Iterator, receive: Callable[[dict], dict], *, step: int
  ):
    super().__init__()
    self._source, self._receive, self._step = parent, receive, step
    self._waiting = collections.deque()
    self._state, self.error = copy.deepcopy(parent.get_state()), None

  def __next__(self) -> dict:
    self._fill()
    if not self._waiting:
      raise self.error
    batch, self._state = self._waiting.popleft()
    self._step += 1
    return batch

  @property
  def limit(self) -> int:
    """The last step for which there is a batch, see LIMIT."""
    self._fill()
    if self.error is None:
      return 2 * _NO_LIMIT
    last = self._step + len(self._waiting)
    return 2 * last + (not isinstance(self.error, ValueError))

  def _fill(self) -> None:
    while self.error is None and len(self._waiting) < AHEAD:
      try:
        batch = self._receive(next(self._source))
        state = copy.deepcopy(self._source.get_state())
        self._waiting.append((batch, state))
      except Exception as e:
        self.error = e

  def get_state(self):
    """The position of the parent after the last returned batch."""
    return self._state

  def set_state(self, state) -> None:
    """Moves the parent; batches that wait are read again."""
    self._source.set_state(state)
    self._waiting.clear()
    self._state, self.error = state, None

  def __str__(self) -> str:
    return 'ReadAhead'


def _error_elsewhere(limit: int) -> Exception:
  """The error of a process whose own data are sound."""
  kind = OSError if limit % 2 else ValueError
  return kind('the data of another process failed; its message says why')
