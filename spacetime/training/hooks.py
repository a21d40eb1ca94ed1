"""What happens now and then while training: held-out measures, sheets."""

import jax
import numpy as np

from spacetime import sharding
from spacetime.sharding import multihost
from spacetime.training import loop, setup, sheets


def events(
  run: setup.Setup, frozen: dict, held_out: dict, workdir, told, empty_SY
) -> list[loop.Every]:
  """The held-out measures and the contact sheets."""
  draw = (
    sheets.sampled(run.experiment, run.nets, held_out, empty_SY=empty_SY)
    if run.nets
    else sheets.reconstructed(run.autoencoder, held_out)
  )
  return [
    loop.Every(
      run.experiment.train.evaluate_every,
      evaluator(run.task, frozen, held_out, run.mesh),
    ),
    loop.Every(
      run.experiment.train.sheet_every,
      sheets.event(draw, frozen, workdir, told),
    ),
  ]


def evaluator(task, frozen, held_out, mesh):
  """step, state -> held-out metrics of the averaged parameters."""
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  count = -(-len(held_out['captions']) // parts) * parts
  batch = {
    name: np.resize(held_out[name], (count, *held_out[name].shape[1:]))
    for name in held_out
    if name != 'captions'
  }
  batch = multihost.put_replicated_batch(batch, sharding.batch_sharding(mesh))
  compiled = jax.jit(task.held_out)

  def call(step, at):
    del step
    found = jax.device_get(compiled(at.ema, frozen, batch))
    return {name: float(value) for name, value in found.items()}

  return call
