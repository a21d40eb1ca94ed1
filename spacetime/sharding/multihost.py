"""Multi-process runs: joining the cluster, agreeing on errors, stopping."""

import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from spacetime import SettingError

AUTO = 'auto'  # JAX finds the cluster: TPU, GKE, SLURM, Open MPI
_MESSAGE = 2048  # bytes of an error message that all processes raise


def join(
  coordinator: str, *, processes: int | None = None, process: int | None = None
) -> None:
  """Joins the cluster; call before JAX initialises its devices.

  Args:
    coordinator: HOST:PORT of process 0, 'auto', or '' for a single process.
    processes: number of processes; not with 'auto'.
    process: index of this process, from 0.

  Raises:
    SettingError: incomplete settings, or no cluster with 'auto'.
  """
  if not coordinator:
    if processes is not None or process is not None:
      raise SettingError(
        'coordinator',
        coordinator,
        'HOST:PORT of process 0, with `num_processes` and `process_id`',
      )
    return
  # For CPUs; other platforms have their own collectives.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  if coordinator == AUTO:
    try:
      jax.distributed.initialize()
    except (ValueError, RuntimeError, KeyError) as e:
      raise SettingError(
        'coordinator',
        AUTO,
        f'a TPU pod, GKE, SLURM (srun) or Open MPI, but no cluster was found '
        f'({e})',
        hint='set `coordinator` to HOST:PORT, `num_processes` and `process_id`',
      ) from e
    return
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise SettingError(
      'coordinator', coordinator, 'HOST:PORT of process 0, or auto'
    )
  if processes is None or process is None or not 0 <= process < processes:
    raise SettingError(
      'process_id',
      process,
      f'0 to one less than `num_processes`={processes}',
    )
  jax.distributed.initialize(coordinator, processes, process)


def is_first() -> bool:
  """Whether this process is the one that writes files."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until every process has reached the barrier of this name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def on_first_process(call: Callable[[], None]) -> None:
  """Calls a function on process 0; the others wait, and raise what it raises.

  Raises:
    ValueError: raised by `call`, on every process.
  """
  message, error = b'', None
  if is_first():
    try:
      call()
    except ValueError as e:
      message, error = str(e).encode()[:_MESSAGE] or b'error', e
  if jax.process_count() > 1:
    buffer = np.zeros(_MESSAGE, np.uint8)
    buffer[: len(message)] = list(message)
    received = multihost_utils.broadcast_one_to_all(buffer)
    message = bytes(np.asarray(received, np.uint8)).rstrip(b'\0')
  if error is not None:
    raise error
  if message:
    raise ValueError(message.decode(errors='replace'))


def spans_processes(mesh: jax.sharding.Mesh) -> bool:
  """Whether devices of a mesh belong to several processes, which run."""
  if jax.process_count() == 1:  # the devices may be descriptions
    return False
  return len({device.process_index for device in mesh.devices.flat}) > 1


def to_global(tree, mesh: jax.sharding.Mesh):
  """Arrays of this process, the same on every process, as replicated arrays of
  a mesh that spans processes; arrays of such a mesh stay as they are."""
  replicated = NamedSharding(mesh, PartitionSpec())

  def leaf(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return x
    if jnp.issubdtype(jax.dtypes.result_type(x), jax.dtypes.prng_key):
      impl = jax.random.key_impl(x)
      data = leaf(jax.random.key_data(x))
      return jax.jit(jax.random.wrap_key_data, static_argnames='impl')(
        data, impl=impl
      )
    value = np.asarray(x)
    return jax.make_array_from_callback(
      value.shape, replicated, lambda index: value[index]
    )

  return jax.tree.map(leaf, tree)


def to_local(tree):
  """Arrays whose values may lie on other processes, complete on a device of
  this one. Every process must call it."""

  def leaf(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return x
    replicated = NamedSharding(x.sharding.mesh, PartitionSpec())
    return _identity(replicated)(x).addressable_data(0)

  return jax.tree.map(leaf, tree)


@functools.cache
def _identity(sharding: NamedSharding):
  return jax.jit(lambda x: x, out_shardings=sharding)


def put_replicated_batch(
  batch: dict[str, np.ndarray], sharding: NamedSharding
) -> dict[str, jax.Array]:
  """Makes global arrays from a batch of which every process has all rows."""

  def put(value):
    return jax.make_array_from_callback(
      value.shape, sharding, lambda index: value[index]
    )

  return {name: put(value) for name, value in batch.items()}


class Stop:
  """Returns, when called after a step, whether SIGTERM or Ctrl-C has arrived.

  Several processes all stop after the same step, whichever got the signal: the
  coordination service chooses the step, since a process that stopped alone
  would leave the others waiting. Each process has to call it once per step.
  A single process has nothing to save before its first step: there a signal
  raises KeyboardInterrupt.

  Attributes:
    preempted: whether a SIGTERM stopped the run.
  """

  def __init__(self):
    self.preempted = self._stepped = False
    self._signals = []
    self._steps = itertools.count()
    self._several = jax.process_count() > 1
    signal.signal(signal.SIGINT, self._handle)
    if not self._several:  # the coordination service has a handler of its own
      signal.signal(signal.SIGTERM, self._handle)

  def _handle(self, number: int, frame) -> None:
    del frame
    if self._signals:
      sys.exit(128 + number)
    self._signals.append(number)
    self.preempted = number == signal.SIGTERM
    if not self._stepped and not self._several:
      raise KeyboardInterrupt('before the first step: nothing to save')
    print('\nsaving and stopping', file=sys.stderr)
    if self._several:
      os.kill(os.getpid(), signal.SIGTERM)

  def __call__(self) -> bool:
    self._stepped = True
    if not self._several:
      return bool(self._signals)
    reached = multihost_utils.reached_preemption_sync_point(next(self._steps))
    self.preempted |= reached and not self._signals
    return reached
