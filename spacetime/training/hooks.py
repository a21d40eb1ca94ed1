"""Periodic actions of a run: held-out metrics and contact sheets."""

import jax
import numpy as np

from spacetime import sharding
from spacetime.sharding import multihost
from spacetime.training import loop, setup, sheets


def periodic_actions(
  run: setup.Setup, frozen: dict, held_out: dict, workdir, writer, empty_SY
) -> list[loop.PeriodicAction]:
  """The held-out metrics and the contact sheets of a run.

  Args:
    run: checked.
    frozen: parameters that are not trained.
    held_out: batch of held-out clips with their captions.
    workdir: output folder.
    writer: of metrics and pictures.
    empty_SY: embedded empty prompt where texts are embedded, else None.
  """
  draw = (
    sheets.sampled(run.experiment, run.nets, held_out, empty_SY=empty_SY)
    if run.nets
    else sheets.reconstructed(run.autoencoder, held_out)
  )
  train = run.experiment.train
  return [
    loop.PeriodicAction(
      train.evaluate_every, evaluator(run.task, frozen, held_out, run.mesh)
    ),
    loop.PeriodicAction(
      train.sheet_every, sheets.action(draw, frozen, workdir, writer)
    ),
  ]


def evaluator(task, frozen, held_out, mesh):
  """(step, state) -> held-out metrics of the averaged parameters."""
  shards = mesh.shape['data'] * mesh.shape['fsdp']
  count = -(-len(held_out['captions']) // shards) * shards
  batch = {
    name: np.resize(held_out[name], (count, *held_out[name].shape[1:]))
    for name in held_out
    if name != 'captions'
  }
  batch = multihost.put_replicated_batch(batch, sharding.batch_sharding(mesh))
  compiled = jax.jit(task.held_out)

  def call(step, state):
    del step
    metrics = jax.device_get(compiled(state.ema, frozen, batch))
    return {name: float(value) for name, value in metrics.items()}

  return call
