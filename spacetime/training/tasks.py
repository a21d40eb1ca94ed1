"""Training stages: loss, initial parameters and held-out metrics of each."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spacetime.config import packing as packing_lib
from spacetime.config.experiment import Experiment
from spacetime.data import batches, packing
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
  two of the central difference, one of guidance, and one of a teacher."""
  if not experiment.model.flow_map:
    return 0
  flow_map = experiment.flow_map
  return 2 + (flow_map.guidance != 1) + (flow_map.teacher == 'model')


def rates(experiment: Experiment, nets: Networks | None) -> loop.Rates:
  """Returns clips, tokens and model FLOPs of one training step, before any has
  been made: means of packed rows, and of batches of several sizes those of the
  one with the most tokens. No tokens in the autoencoder's stage, no FLOPs of
  packed rows of stages."""
  data = experiment.data
  if nets is None:
    return loop.Rates(clips=data.batch_size)
  patch, cost = nets.dit.config.patch, clip_flops(experiment, nets)
  patchify = packing_lib.make_patchify(experiment, nets.autoencoder, patch)
  if patchify is None:
    grid = packing_lib.grid(nets.autoencoder, patch)
    size, clips = batches.largest_batch(data, grid)
    return _of_clips([grid(*size).grid] * clips, cost)
  if data.stages:
    tokens = data.batch_size * data.packing.length
    return loop.Rates(clips=data.batch_size, tokens=tokens)
  means = packing_lib.measure(data, patchify, cost)
  return loop.Rates(clips=means.clips, tokens=means.tokens, flops=means.cost)


def batch_rates(
  experiment: Experiment, nets: Networks | None
) -> Callable[[Mapping[str, np.ndarray]], loop.Rates]:
  """Returns rows of a batch -> their clips, tokens and model FLOPs."""
  if nets is None:
    return lambda batch: loop.Rates(clips=len(batch['frames']))
  patch, cost = nets.dit.config.patch, clip_flops(experiment, nets)
  grid = packing_lib.grid(nets.autoencoder, patch)

  def measure(batch: Mapping[str, np.ndarray]) -> loop.Rates:
    if 'grids' in batch:
      grids = np.reshape(batch['grids'], (-1, 3)).tolist()
      return _of_clips([tuple(each) for each in grids if each[0]], cost)
    if 'latents' in batch:
      rows, *latent = batch['latents'].shape[:4]
      each = tuple(n // p for n, p in zip(latent, patch, strict=True))
    else:
      rows, *size = batch['frames'].shape[:4]
      each = grid(*size).grid
    return _of_clips([each] * rows, cost)

  return measure


def _of_clips(grids: Sequence[tuple[int, int, int]], cost) -> loop.Rates:
  """Amounts of clips of so many tokens along each axis."""
  tokens = sum(math.prod(grid) for grid in grids)
  return loop.Rates(len(grids), tokens, sum(map(cost, grids)))


def clip_flops(
  experiment: Experiment, nets: Networks
) -> Callable[[tuple[int, int, int]], float]:
  """Returns the model FLOPs of a training step by the tokens of one clip along
  each axis."""
  model = nets.dit.config

  @functools.cache
  def cost(grid: tuple[int, int, int]) -> float:
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
    step = 2 * forward if nets.lora.rank else flops.training(forward)
    return step + more_predictions(experiment) * forward

  return cost
