"""A run of training, checked whole before anything is written or compiled."""

import dataclasses
import pathlib
from typing import Any

import jax

from spacetime import build, checkpoint, pretrained
from spacetime import config as config_lib
from spacetime.training import state

KEPT = 'autoencoder'  # where a run has its copy of a trained one
# Keys that a resumed run may change: they do not bear on what was learnt. More
# steps, and a later decay, are how a run on its plateau is made longer.
FREE = (
  'train.steps',
  'optimizer.decay',
  'train.log_every',
  'train.evaluate_every',
  'train.sheet_every',
  'train.checkpoint_every',
  'train.keep',
  'autoencoder.latents_mean',
  'autoencoder.latents_std',
  'data.dir',
  'mesh',
  'sampling',
)


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run whose parts have been checked: nothing is written or compiled yet.

  Attributes:
    config: with the run's own copy of an autoencoder named, if it has one.
    data, train: sections.
    mesh, optimizer, task: as build makes them.
    nets: None for an autoencoder's stage.
    codec: the autoencoder.
    frozen: its parameters where they do not move.
    shapes: the abstract state on the mesh.
  """

  config: Any
  data: config_lib.DataConfig
  train: config_lib.TrainConfig
  mesh: jax.sharding.Mesh
  optimizer: Any
  task: build.Task
  nets: build.Networks | None
  codec: Any
  frozen: dict
  shapes: state.State


def check(config, workdir: str) -> Plan:
  """Refuses what cannot work.

  Raises:
    ValueError: the config, or what the work directory holds, cannot be.
  """
  if config.get('stage') not in config_lib.STAGES:
    raise ValueError(
      f'stage={config.get("stage")!r}: expected one of {config_lib.STAGES}'
    )
  data, train = config_lib.data(config), config_lib.train(config)
  optimizer, mesh = build.make_optimizer(config), build.mesh(config)
  if (pathlib.Path(workdir) / KEPT).exists():
    config.autoencoder.weights = KEPT
  task, nets, codec, frozen = networks(config, mesh, workdir)
  plain = config_lib.plain(config)
  if frozen:
    plain['autoencoder']['weights'] = KEPT
  checkpoint.check_config(workdir, plain, free=FREE)
  key = jax.random.key(config.seed)
  shapes = state.abstract_state(task.init, key, optimizer, mesh)
  checkpoint.check_writable(workdir)
  return Plan(
    config, data, train, mesh, optimizer, task, nets, codec, frozen, shapes
  )


def networks(config, mesh, workdir):
  """(task, networks or None, autoencoder, frozen) of the config's stage."""
  if config.stage == 'autoencoder':
    codec = build.autoencoder(config)
    return build.reconstruction_task(config, codec), None, codec, {}
  if config.autoencoder.kind == 'causal':
    raise ValueError(
      "autoencoder.kind='causal' in a transformer's stage has no weights: "
      "expected 'identity', or 'weights' with autoencoder.weights=DIR"
    )
  weights, frozen = pretrained.load_autoencoder(
    config, beside=workdir, mesh=mesh
  )
  nets = build.networks(config, weights=weights)
  build.grids(config, nets)
  build.grids(config, nets, config_lib.data(config).crop)
  config_lib.sampling(config)
  return build.diffusion_task(config, nets), nets, nets.autoencoder, frozen
