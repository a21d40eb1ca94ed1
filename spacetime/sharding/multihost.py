"""Several processes that run one program: how they meet, agree and stop."""

import itertools
import os
import signal
import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

AUTO = 'auto'  # JAX finds the cluster: TPU, GKE, SLURM, Open MPI
_MESSAGE = 2048  # bytes of an error that all processes raise


def join(
  coordinator: str, *, processes: int | None = None, process: int | None = None
) -> None:
  """Joins the cluster; call before JAX looks for devices.

  Args:
    coordinator: HOST:PORT of process 0, 'auto', or '' for a run of its own.
    processes: how many there are; not with 'auto'.
    process: which of them this is, from 0.

  Raises:
    ValueError: half of what it takes, or no cluster is found.
  """
  if not coordinator:
    if processes is not None or process is not None:
      raise ValueError(
        f'--num_processes={processes}, --process_id={process}: expected '
        '--coordinator=HOST:PORT too'
      )
    return
  # Of CPUs; other platforms have their own collectives.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  if coordinator == AUTO:
    try:
      jax.distributed.initialize()
    except (ValueError, RuntimeError, KeyError) as e:
      raise ValueError(
        f'--coordinator=auto: no cluster was found ({e}); expected a TPU pod, '
        'GKE, SLURM (srun) or Open MPI; else give --coordinator=HOST:PORT, '
        '--num_processes and --process_id'
      ) from e
    return
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise ValueError(
      f'--coordinator={coordinator}: expected HOST:PORT of process 0, or auto'
    )
  if processes is None or process is None or not 0 <= process < processes:
    raise ValueError(
      f'--num_processes={processes}, --process_id={process}: expected a number '
      'of processes, and 0 to one less of it'
    )
  jax.distributed.initialize(coordinator, processes, process)


def is_first() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Returns when every process is here; the same name on all."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def first(call: Callable[[], None]) -> None:
  """Calls on process 0 alone; the others wait, and raise what it raises.

  Raises:
    ValueError: of `call`, on every process.
  """
  told, error = b'', None
  if is_first():
    try:
      call()
    except ValueError as e:
      told, error = str(e).encode()[:_MESSAGE] or b'error', e
  if jax.process_count() > 1:
    buffer = np.zeros(_MESSAGE, np.uint8)
    buffer[: len(told)] = list(told)
    heard = multihost_utils.broadcast_one_to_all(buffer)
    told = bytes(np.asarray(heard, np.uint8)).rstrip(b'\0')
  if error is not None:
    raise error
  if told:
    raise ValueError(told.decode(errors='replace'))


def put_whole(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict:
  """Global arrays from a batch of which every process has all rows."""

  def put(value):
    return jax.make_array_from_callback(
      value.shape, sharding, lambda index: value[index]
    )

  return {name: put(value) for name, value in batch.items()}


class Stop:
  """Asked after each step: whether SIGTERM or Ctrl-C has come.

  Of several processes all stop after the same step, whichever was told: the
  coordination service picks it, since who stops alone leaves the others
  waiting. Each must ask once a step.

  Attributes:
    preempted: whether a SIGTERM has stopped the run.
  """

  def __init__(self):
    self.preempted = False
    self._caught = []
    self._steps = itertools.count()
    self._several = jax.process_count() > 1
    signal.signal(signal.SIGINT, self._handle)
    if not self._several:  # else the service has its own, of which it learns
      signal.signal(signal.SIGTERM, self._handle)

  def _handle(self, number: int, frame) -> None:
    del frame
    if self._caught:
      sys.exit(128 + number)
    self._caught.append(number)
    print('\nsaving and stopping', file=sys.stderr)
    self.preempted = number == signal.SIGTERM
    if self._several:
      os.kill(os.getpid(), signal.SIGTERM)

  def __call__(self) -> bool:
    if not self._several:
      return bool(self._caught)
    reached = multihost_utils.reached_preemption_sync_point(next(self._steps))
    self.preempted |= reached and not self._caught
    return reached
