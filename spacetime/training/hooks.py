"""Periodic actions of a run: held-out metrics and contact sheets."""

import dataclasses

import jax
import numpy as np

from spacetime import sharding
from spacetime.data.digits import world as world_lib
from spacetime.sharding import multihost
from spacetime.training import caption_probe, loop, setup, sheets


def periodic_actions(
  run: setup.Setup,
  frozen: dict,
  held_out: dict,
  workdir,
  writer,
  empty_SY,
  encode=None,
) -> list[loop.PeriodicAction]:
  """Builds the held-out metrics, contact sheets and caption probe of a run.

  Args:
    run: checked.
    frozen: parameters that are not trained.
    held_out: batch of held-out clips with their captions.
    workdir: output folder.
    writer: of metrics and pictures.
    empty_SY: embedded empty prompt where texts are embedded, else None.
    encode: caption -> tokens_S, for the caption probe.
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
      train.sheet_every,
      sheets.action(
        draw,
        frozen,
        workdir,
        writer,
        scenes=held_out.get('scenes', [])[: train.scored_clips],
      ),
    ),
    *(
      [
        loop.PeriodicAction(
          train.probe_every,
          prober(run.task, frozen, held_out, run.mesh, encode),
        )
      ]
      if train.probe_every
      else []
    ),
  ]


def prober(task, frozen, held_out, mesh, encode):
  """Returns (step, state) -> loss with one wrong word (caption_probe.py).

  Args:
    task: the transformer's stage.
    frozen: parameters that are not trained.
    held_out: clips with their scenes.
    mesh: devices of the state.
    encode: caption -> tokens_S.
  """
  scenes = [world_lib.from_json(text) for text in held_out['scenes']]
  batch = caption_probe.prompts(scenes, encode)
  for name in ('captions', 'frames'):
    batch[name] = held_out[name]
  task = dataclasses.replace(task, held_out=task.probe)
  return evaluator(task, frozen, batch, mesh)


def evaluator(task, frozen, held_out, mesh):
  """Returns (step, state) -> held-out metrics of the averaged parameters."""
  shards = mesh.shape['data'] * mesh.shape['fsdp']
  clips = len(held_out['captions'])
  count = -(-clips // shards) * shards
  batch = {
    name: np.resize(held_out[name], (count, *held_out[name].shape[1:]))
    for name in held_out
    if name not in ('captions', 'scenes')
  }
  if count > clips:  # repeated clips fill the mesh, and do not count
    batch['counted'] = (np.arange(count) < clips).astype(np.float32)
  batch = multihost.put_replicated_batch(batch, sharding.batch_sharding(mesh))
  compiled = jax.jit(task.held_out)

  def call(step, state):
    del step
    metrics = jax.device_get(compiled(state.ema, frozen, batch))
    return {name: float(value) for name, value in metrics.items()}

  return call
