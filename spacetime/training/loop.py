"""The only training loop, with its effects in the order they happen."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from spacetime import sharding
from spacetime.checkpoint import Checkpoints
from spacetime.sharding import chips
from spacetime.training import goodput
from spacetime.training import metrics as metrics_lib
from spacetime.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class Every:
  """Calls `call(step, state)` after every `steps` steps and at the end.

  A dict that it returns is written to the metrics. steps = 0 is never.
  """

  steps: int
  call: Callable[[int, state_lib.State], dict | None]

  def due(self, step: int, last: int) -> bool:
    """Whether it is time."""
    return bool(self.steps) and (step % self.steps == 0 or step == last)


@dataclasses.dataclass(frozen=True)
class Rates:
  """What one step is worth, for rates a second.

  Attributes:
    clips: in a batch, over all devices; of packed rows the mean.
    tokens: in a batch; 0 where there are none.
    flops: model FLOPs of a step, analytic; 0 where not counted.
  """

  clips: float
  tokens: int = 0
  flops: float = 0.0

  def told(self, steps: int, seconds: float) -> dict[str, float]:
    """Rates over so many steps; MFU where the chip's peak is known."""
    rate = steps / seconds
    told = {'clips_per_second': self.clips * rate, 'step_seconds': 1 / rate}
    if self.tokens:
      told['tokens_per_second'] = self.tokens * rate
    if self.flops:
      told['model_tflops'] = self.flops * rate / 1e12
      mfu = chips.utilisation(
        self.flops * rate,
        kind=jax.devices()[0].device_kind,
        devices=jax.device_count(),
      )
      if mfu is not None:
        told['mfu'] = mfu
    return told


def jit_step(step_fn: Callable, state: state_lib.State, mesh):
  """The step as it is compiled, here and by the dry run (dry_run.py).

  Args:
    step_fn: as made by make_step.
    state: arrays, or their shapes, with the shardings of the mesh; donated.
    mesh: its devices may be described only.
  """
  places = jax.tree.map(lambda leaf: leaf.sharding, state)
  return jax.jit(
    step_fn,
    donate_argnums=0,
    out_shardings=(places, None),
    compiler_options=chips.options(mesh.devices.flat[0].device_kind),
  )


class _Teller:
  """Tells metrics one step late, so that no step is waited for."""

  def __init__(self, writer, ledger: goodput.Ledger, rates: Rates, bar):
    self._writer, self._ledger = writer, ledger
    self._rates, self._bar = rates, bar
    self._due, self._skips = None, []
    # Rates count from the second line on: the first holds the compilation.
    self._since = None

  def hear(self, step: int, metrics: dict, *, due: bool) -> None:
    """Keeps what a step gives, still on its device."""
    if 'skipped' in metrics:
      self._skips.append(metrics['skipped'])
    if due:
      self._due, self._skips = (step, metrics, self._skips), []

  def tell(self) -> None:
    """Writes the metrics that are due, if there are any."""
    if self._due is None:
      return
    step, metrics, skips = self._due
    self._due = None
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    if skips:
      values['skipped'] = self._count(step, skips)
    now, waited = time.monotonic(), self._ledger.seconds['data']
    if self._since is not None:
      before, began, data = self._since
      values |= self._rates.told(step - before, now - began)
      values['data_wait'] = (waited - data) / (now - began)
    self._since = step, now, waited
    self._writer.write(step, values)
    self._bar.set_postfix(loss=f'{values["loss"]:.4f}')
    self._ledger.write()

  def finish(self) -> None:
    """Tells the last; counts the steps of which no line is due."""
    self.tell()
    if self._skips:
      self._count(self._ledger.step, self._skips)

  def _count(self, step: int, skips: list) -> float:
    skipped = sum(map(float, jax.device_get(skips)))
    self._ledger.skipped += int(skipped)
    if skipped:
      logging.warning(
        'step %d: of the last %d steps %d moved nothing: loss or gradient not '
        'finite, or loss above train.spike',
        step,
        len(skips),
        skipped,
      )
    return skipped


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
  ledger: goodput.Ledger,
  events: Sequence[Every] = (),
  rates: Rates,
  stop: Callable[[], bool] = lambda: False,
) -> state_lib.State:
  """Trains until `steps` or until `stop()`; saves at the end either way.

  Args:
    step_fn: as made by make_step.
    state: to go on from; donated.
    frozen: parameters that do not move.
    iterator: batches of numpy arrays, this process's rows.
    key: of the whole run.
    mesh: where the state lies.
    steps: of the whole run, those already made included.
    log_every: steps between lines of metrics.
    writer: of metrics.
    checkpoints: of the work directory.
    checkpoint_every: steps between checkpoints; 0 saves only at the end.
    ledger: of where time goes.
    events: what else happens.
    rates: what one step is worth.
    stop: asked after each step, on every process.

  Returns:
    The last state.
  """
  first = int(state.step)
  whole = NamedSharding(mesh, PartitionSpec())
  # Not device_put: it reaches no devices of other processes.
  key = jax.jit(lambda key: key, out_shardings=whole)(key)
  bar = metrics_lib.progress(
    start=first, steps=steps, quiet=jax.process_index() > 0
  )
  teller = _Teller(writer, ledger, rates, bar)
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    compiled = jit_step(step_fn, state, mesh)
    stack.enter_context(bar)
    stack.enter_context(jax.transfer_guard('disallow'))
    stack.enter_context(ledger.during('step'))
    for step in range(first + 1, steps + 1):
      with ledger.during('data'):
        batch = next(iterator)
      with jax.transfer_guard_host_to_device('allow'):
        batch = sharding.put_batch(batch, mesh)
      with ledger.during('compile' if step == first + 1 else 'step'):
        state, metrics = compiled(state, frozen, batch, key)
      teller.tell()  # of the step before: never wait for this one
      teller.hear(step, metrics, due=step % log_every == 0 or step == steps)
      bar.update(1)
      ledger.made(step)
      if checkpoint_every and step % checkpoint_every == 0:
        with ledger.during('checkpoint'), jax.transfer_guard('allow'):
          checkpoints.save(step, state, iterator=iterator)
      for event in events:
        if event.due(step, steps):
          with ledger.during('evaluate'):
            values = event.call(step, state)
          if values:
            writer.write(step, values)
      if stop():
        break
    teller.finish()
    # Asked for by name: on an accelerator the guard refuses what is not.
    done = int(jax.device_get(state.step))
  with ledger.during('checkpoint'):
    if done > first:
      checkpoints.save(done, state, iterator=iterator, wait=True)
    writer.flush()
  return state
