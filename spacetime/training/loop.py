"""The only training loop, with its effects in the order they happen.

The host dispatches a step and then waits for the one before it, so that a
device always has its next step and never more: a run that is told to stop saves
after at most two steps, and times and counts are of finished steps.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from spacetime.checkpoint import Checkpoints
from spacetime.sharding import chips
from spacetime.training import feed as feed_lib
from spacetime.training import goodput, progress
from spacetime.training import metrics as metrics_lib
from spacetime.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class PeriodicAction:
  """Calls `call(step, state)` after every `steps` steps and after the last.

  A dict that it returns is written to the metrics. steps = 0 never calls.
  """

  steps: int
  call: Callable[[int, state_lib.State], dict | None]

  def due(self, step: int, last: int) -> bool:
    """Whether to call after this step of a run that ends with `last`."""
    return bool(self.steps) and (step % self.steps == 0 or step == last)


@dataclasses.dataclass(frozen=True)
class Rates:
  """Amounts of one training step or several, for rates per second.

  Attributes:
    clips: clips, over all devices.
    tokens: tokens without padding; 0 in the autoencoder's stage.
    flops: model FLOPs, analytic; 0 where not counted.
  """

  clips: float
  tokens: float = 0
  flops: float = 0.0

  def __add__(self, other: 'Rates') -> 'Rates':
    return Rates(
      self.clips + other.clips,
      self.tokens + other.tokens,
      self.flops + other.flops,
    )

  def times(self, factor: float) -> 'Rates':
    """These amounts, so many times."""
    return Rates(self.clips * factor, self.tokens * factor, self.flops * factor)

  def per_second(self, steps: int, seconds: float) -> dict[str, float]:
    """Computes the rates of the amounts of some steps; MFU where the chip's
    peak is known."""
    rates = {
      'clips_per_second': self.clips / seconds,
      'step_seconds': seconds / steps,
    }
    if self.tokens:
      rates['tokens_per_second'] = self.tokens / seconds
    if self.flops:
      rates['model_tflops'] = self.flops / seconds / 1e12
      mfu = chips.utilisation(
        self.flops / seconds,
        kind=jax.devices()[0].device_kind,
        devices=jax.device_count(),
      )
      if mfu is not None:
        rates['mfu'] = mfu
    return rates


def jit_step(step_fn: Callable, state: state_lib.State, mesh):
  """The step as the trainer and the dry run compile it.

  Args:
    step_fn: the step of make_step.
    state: arrays, or their shapes, with the shardings of the mesh; donated.
    mesh: its devices may be described only.
  """
  shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
  return jax.jit(
    step_fn,
    donate_argnums=0,
    out_shardings=(shardings, None),
    compiler_options=chips.options(mesh.devices.flat[0].device_kind),
  )


class MetricsLogger:
  """Logs metrics one step late, so that logging never blocks on the running
  step."""

  def __init__(self, writer, time_log: goodput.Goodput, bar):
    self._writer, self._goodput, self._bar = writer, time_log, bar
    self._pending, self._skips = None, []
    self._amounts = Rates(clips=0)  # of all steps since the last line
    # Rates start with the second line: the first includes the compilation.
    self._since = None

  def add(self, step: int, metrics: dict, amounts: Rates, *, due: bool) -> None:
    """Keeps the metrics of a step, which are still on the device, and adds its
    amounts."""
    self._amounts += amounts
    if 'skipped' in metrics:
      self._skips.append(metrics['skipped'])
    if due:
      self._pending = step, metrics, self._skips, self._amounts
      self._skips, self._amounts = [], Rates(clips=0)

  def write(self) -> None:
    """Writes the pending metrics, if there are any."""
    if self._pending is None:
      return
    step, metrics, skips, amounts = self._pending
    self._pending = None
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    if skips:
      values['skipped'] = self._count(step, skips)
    now, waited = time.monotonic(), self._goodput.seconds['data']
    if self._since is not None:
      before, began, data = self._since
      values |= amounts.per_second(step - before, now - began)
      values['data_wait'] = (waited - data) / (now - began)
    self._since = step, now, waited
    self._writer.write(step, values)
    self._bar.set_postfix(loss=f'{values["loss"]:.4f}')
    self._goodput.write()

  def finish(self) -> None:
    """Writes the last metrics; counts skipped steps since the last line."""
    self.write()
    if self._skips:
      self._count(self._goodput.step, self._skips)

  def _count(self, step: int, skips: list) -> float:
    skipped = sum(map(float, jax.device_get(skips)))
    self._goodput.skipped += int(skipped)
    if skipped:
      logging.warning(
        'step %d: %d of the last %d steps were skipped: loss or gradient not '
        'finite, or loss above train.spike',
        step,
        skipped,
        len(skips),
      )
    return skipped


class PendingStep:
  """The last dispatched step, which the devices may still compute."""

  def __init__(self, time_log: goodput.Goodput, bar):
    self._goodput, self._bar = time_log, bar
    self._step, self._metrics = None, None

  def add(self, step: int, metrics: dict) -> None:
    """Keeps a dispatched step; the one before it has been waited for."""
    self._step, self._metrics = step, metrics

  def wait(self) -> None:
    """Waits until the step is finished, and counts it."""
    if self._step is None:
      return
    jax.block_until_ready(self._metrics)
    self._bar.update(1)
    self._goodput.count_step(self._step)
    self._step, self._metrics = None, None


def run(
  step_fn: Callable,
  state: state_lib.State,
  frozen: dict,
  iterator: Iterator,
  *,
  key: jax.Array,
  mesh: jax.sharding.Mesh,
  steps: int,
  log_every: int,
  writer: metrics_lib.MetricsWriter,
  checkpoints: Checkpoints,
  checkpoint_every: int,
  time_log: goodput.Goodput,
  actions: Sequence[PeriodicAction] = (),
  rates: Callable[[Mapping[str, np.ndarray]], Rates],
  stop: Callable[[], bool] = lambda: False,
  receive: Callable[[dict], dict] = lambda batch: batch,
) -> state_lib.State:
  """Trains until `steps` or until `stop()`; saves at the end either way, and
  before it raises an error of the data. Such an error of one process stops all
  of them after the same step.

  Args:
    step_fn: the step of make_step.
    state: initial state; donated.
    frozen: parameters that are not trained.
    iterator: batches of numpy arrays, this process's rows.
    key: of the entire run.
    mesh: devices of the state.
    steps: steps of the entire run, including those before `state`.
    log_every: steps between lines of metrics.
    writer: of metrics.
    checkpoints: of the output folder.
    checkpoint_every: steps between checkpoints; 0 saves only at the end.
    time_log: where the time of the run goes.
    actions: called after steps.
    rates: rows of this process -> their amounts.
    stop: called after each dispatched step, on every process.
    receive: called with each batch; returns the one to train on.

  Returns:
    The last state.
  """
  first = int(state.step)
  replicated = NamedSharding(mesh, PartitionSpec())
  # Not device_put, which reaches no devices of other processes.
  key = jax.jit(lambda key: key, out_shardings=replicated)(key)
  bar = progress.bar(start=first, steps=steps, quiet=jax.process_index() > 0)
  logger = MetricsLogger(writer, time_log, bar)
  pending = PendingStep(time_log, bar)
  if jax.process_count() > 1:
    feed = feed_lib.SharedFeed(iterator, receive, step=first)
  else:
    feed = feed_lib.Feed(iterator, receive)
  with contextlib.ExitStack() as stack:
    # Whatever ends the loop: else steps since the last line would be missing.
    stack.callback(time_log.write, now=True)
    stack.enter_context(jax.set_mesh(mesh))
    compiled = jit_step(feed.step(step_fn), state, mesh)
    stack.enter_context(bar)
    stack.enter_context(jax.transfer_guard('disallow'))
    stack.enter_context(time_log.during('step'))
    for step in range(first + 1, steps + 1):
      with time_log.during('data'):
        rows = feed.read(step)
      if rows is None:
        break
      with jax.transfer_guard_host_to_device('allow'):
        batch = feed.put(rows, mesh)
      name = next(iter(rows))
      amounts = rates(rows).times(len(batch[name]) / len(rows[name]))
      if step == first + 1:
        with (
          time_log.during('compile'),
          progress.compiling('the step', bar),
          progress.answered_signals(),
        ):
          state, metrics = compiled(state, frozen, batch, key)
      else:
        state, metrics = compiled(state, frozen, batch, key)
      pending.wait()  # for the step before; this one runs meanwhile
      feed.exchange(metrics)
      logger.write()
      due = step % log_every == 0 or step == steps
      logger.add(step, metrics, amounts, due=due)
      pending.add(step, metrics)
      if checkpoint_every and step % checkpoint_every == 0:
        pending.wait()  # its time is the step's, not the checkpoint's
        with time_log.during('checkpoint'), jax.transfer_guard('allow'):
          checkpoints.save(step, state, iterator=feed.iterator)
      for action in actions:
        if action.due(step, steps):
          pending.wait()
          with time_log.during('evaluate'), progress.answered_signals():
            values = action.call(step, state)
          if values:
            writer.write(step, values)
      if stop():
        break
    pending.wait()
    logger.finish()
    # An explicit transfer: on an accelerator the guard refuses others.
    done = int(jax.device_get(state.step))
  with time_log.during('checkpoint'):
    if done > first:
      checkpoints.save(done, state, iterator=feed.iterator, wait=True)
    writer.flush()
  if feed.error is not None:
    if done > first:
      logging.error('the data failed after step %d, which is saved', done)
    raise feed.error
  return state
