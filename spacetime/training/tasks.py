"""Training stages: loss, initial parameters and held-out metrics of each."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from spacetime.config import networks as networks_lib
from spacetime.config import packing as packing_lib
from spacetime.config.experiment import Experiment
from spacetime.data import packing
from spacetime.data.tokenizer import END
from spacetime.models import flops
from spacetime.models.networks import Networks
from spacetime.training import (
  autoencoder_loss,
  caption_probe,
  flow_map_loss,
  loop,
  losses,
)


@dataclasses.dataclass(frozen=True)
class Task:
  """A training stage as functions that the loop calls.

  Attributes:
    init: key -> params.
    loss: see step.Loss.
    draw: see step.Draw.
    held_out: (params, frozen, batch) -> metrics.
    probe: (params, frozen, batch) -> loss with wrong captions; see
      caption_probe.py.
  """

  init: Callable
  loss: Callable
  draw: Callable
  held_out: Callable
  probe: Callable | None = None


def diffusion_task(
  experiment: Experiment, nets: Networks, *, empty_SY=None
) -> Task:
  """Returns the training stage of the transformer.

  Args:
    experiment: the experiment.
    nets: its networks.
    empty_SY: embedding of the empty caption where the text encoder is frozen;
      read for a flow map.
  """
  experiment.require('data', 'flow', 'conditioning')
  stage = losses.DiffusionLoss(
    encode=nets.encode,
    embed=nets.embed,
    transform=nets.transform,
    flow=experiment.flow,
    conditioning=experiment.conditioning,
    patch=nets.dit.config.patch,
    known=nets.dit.config.known_frames,
    stride=nets.autoencoder.stride[0],
  )
  probe = functools.partial(caption_probe.measure, stage)
  if isinstance(experiment.data.packing, packing.SequencePacking):
    rows = losses.PackedDiffusionLoss(stage, nets.transform_packed)
    return Task(
      nets.init_trainable, rows.loss, rows.draw, stage.held_out, probe
    )
  trained = stage
  if nets.dit.config.flow_map:
    negative = functools.partial(_negative, nets, empty_SY)
    trained = flow_map_loss.FlowMapLoss(stage, experiment.flow_map, negative)
  return Task(
    nets.init_trainable, trained.loss, trained.draw, stage.held_out, probe
  )


def _negative(nets: Networks, empty_SY, params, rows: int) -> jax.Array:
  """Embeddings of the empty prompt for a batch, text_BSY."""
  if nets.text_kind == 'frozen':
    text_1SY = jnp.asarray(empty_SY)[None]
  else:
    tokens_1S = jnp.zeros((1, nets.text_length), jnp.int32).at[0, 0].set(END)
    text_1SY = nets.embed(params, tokens_1S)
  return jnp.repeat(text_1SY, rows, axis=0)


def reconstruction_stage(
  experiment: Experiment, autoencoder
) -> autoencoder_loss.Reconstruction:
  """Returns the autoencoder's loss, of {'autoencoder': params}."""
  experiment.require('reconstruction')

  def posterior(params, video_BFHWC):
    gaussian = autoencoder.posterior(params['autoencoder'], video_BFHWC)
    return gaussian.mean_Bfhwc, gaussian.logvar_Bfhwc

  def decode_raw(params, z_Bfhwc):
    z_Bfhwc = autoencoder.normalise(z_Bfhwc)
    return autoencoder.decode_unclipped(params['autoencoder'], z_Bfhwc)

  return autoencoder_loss.Reconstruction(
    posterior, decode_raw, experiment.reconstruction
  )


def reconstruction_task(experiment: Experiment, autoencoder) -> Task:
  """Returns the training stage of the autoencoder."""
  stage = reconstruction_stage(experiment, autoencoder)

  def init(key):
    return {'autoencoder': autoencoder.init(key)}

  return Task(init, stage.loss, stage.draw, stage.held_out)


def more_predictions(experiment: Experiment) -> int:
  """Returns the predictions without gradient of a training step: of a flow map
  two of the central difference, and one of guidance."""
  if not experiment.model.flow_map:
    return 0
  return 2 + (experiment.flow_map.guidance != 1)


def rates(experiment: Experiment, nets: Networks | None) -> loop.Rates:
  """Returns clips, tokens and model FLOPs of one training step."""
  data = experiment.data
  if nets is None:
    return loop.Rates(clips=data.batch_size)
  if data.stages:
    # Rows have as many tokens as they hold; `padding` is a metric of its own.
    rows = isinstance(data.packing, packing.SequencePacking)
    tokens = data.batch_size * data.packing.length if rows else 0
    return loop.Rates(clips=data.batch_size, tokens=tokens)
  model = nets.dit.config

  def clip_flops(grid: tuple[int, int, int]) -> float:
    """Model FLOPs of one clip, of so many tokens along each axis."""
    forward = flops.transformer(
      tokens=math.prod(grid),
      text_tokens=nets.text_length,
      width=model.width,
      layers=model.layers,
      mlp=model.mlp,
      text_width=model.text_width,
      patch_volume=model.patch_volume,
      timesteps=grid[0],
      frequencies=model.frequencies,
    )
    # Frozen kernels have no gradients to compute.
    cost = 2 * forward if nets.lora.rank else flops.training(forward)
    return cost + more_predictions(experiment) * forward

  patchify = packing_lib.make_patchify(
    experiment, nets.autoencoder, model.patch
  )
  if patchify is not None:
    means = packing_lib.measure(data, patchify, clip_flops)
    return loop.Rates(clips=means.clips, tokens=means.tokens, flops=means.cost)
  grid = networks_lib.clip_geometry(data, nets)
  return loop.Rates(
    clips=data.batch_size,
    tokens=data.batch_size * grid.tokens,
    flops=data.batch_size * clip_flops(grid.grid),
  )
