"""The only training loop, with its effects in the order they happen."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

from spacetime import chips, sharding
from spacetime.checkpoint import Checkpoints
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
    clips: in a batch, over all devices.
    tokens: in a batch; 0 where there are none.
    flops: model FLOPs of a step, analytic; 0 where not counted.
  """

  clips: int
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
    events: what else happens.
    rates: what one step is worth.
    stop: asked after each step.

  Returns:
    The last state.
  """
  first = int(state.step)
  key = jax.device_put(key, NamedSharding(mesh, PartitionSpec()))
  # Rates count from the second line on: the first holds the compilation.
  told, since, waited = None, None, 0.0
  with jax.set_mesh(mesh):
    compiled = jit_step(step_fn, state, mesh)
    bar = metrics_lib.progress(
      start=first, steps=steps, quiet=jax.process_index() > 0
    )
    with bar, jax.transfer_guard('disallow'):
      for step in range(first + 1, steps + 1):
        asked = time.monotonic()
        batch = next(iterator)
        waited += time.monotonic() - asked
        batch = sharding.put_batch(batch, mesh)
        state, metrics = compiled(state, frozen, batch, key)
        if told is not None:  # of the step before: never wait for this one
          values = {k: float(v) for k, v in jax.device_get(told[1]).items()}
          now = time.monotonic()
          if since is not None:
            seconds = now - since[1]
            values |= rates.told(step - 1 - since[0], seconds)
            values['data_wait'] = waited / seconds
          writer.write(told[0], values)
          bar.set_postfix(loss=f'{values["loss"]:.4f}')
          told, since, waited = None, (step - 1, now), 0.0
        if step % log_every == 0 or step == steps:
          told = (step, metrics)
        bar.update(1)
        if checkpoint_every and step % checkpoint_every == 0:
          with jax.transfer_guard('allow'):  # Orbax copies as it sees fit
            checkpoints.save(step, state, iterator=iterator)
        for event in events:
          if event.due(step, steps):
            values = event.call(step, state)
            if values:
              writer.write(step, values)
        if stop():
          break
  if told is not None:
    writer.write(told[0], jax.device_get(told[1]))
  done = int(state.step)
  if done > first:
    checkpoints.save(done, state, iterator=iterator, wait=True)
  writer.flush()
  return state
