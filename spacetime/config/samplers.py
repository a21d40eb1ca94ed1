"""Builds the samplers of an experiment and sampling settings."""

import dataclasses
import math

from spacetime import SettingError
from spacetime.config.experiment import Experiment
from spacetime.diffusion import flow
from spacetime.diffusion.sampler import Sampler
from spacetime.diffusion.settings import SamplingSettings
from spacetime.models.networks import FirstBlockCache, Networks
from spacetime.models.transformer import layer_runs
from spacetime.models.transformer.attention import ImageContext


def sampler(
  experiment: Experiment,
  nets: Networks,
  settings: SamplingSettings,
  *,
  latent: tuple[int, int, int] | None = None,
) -> Sampler:
  """The sampler of a model with one transformer.

  Args:
    experiment: experiment of the model.
    nets: networks of the model.
    settings: settings of the sampler.
    latent: (f, h, w) of the clips. For a model trained on many sizes the shift
      holds for clips of flow.reference tokens and scales with those of
      `latent`.
  """
  trained = experiment.flow
  if latent is not None and trained.reference is not None:
    tokens = math.prod(latent) // math.prod(nets.dit.config.patch)
    unscaled = dataclasses.replace(trained, shift=settings.shift)
    shift = float(flow.size_shift(unscaled, tokens))
    settings = dataclasses.replace(settings, shift=shift)
  nets = nets.with_rope_scaling(
    settings.rope_scaling, frames=experiment.data.max_frames
  )
  if nets.dit.config.flow_map and settings.solver != 'euler':
    raise SettingError(
      'solver',
      settings.solver,
      "'euler' with this model, a flow map, whose steps are of any length",
    )
  layers = nets.dit.config.layers
  if not all(0 <= layer < layers for layer in settings.skip_layers):
    raise SettingError(
      'skip_layers',
      settings.skip_layers,
      f'numbers from 0 to {layers - 1}, since the model has {layers} layers',
    )
  threshold = settings.first_block_cache
  return Sampler(
    transform=nets.transform,
    flow=trained,
    settings=settings,
    precompute_kv=nets.precompute_kv,
    cached_transform=FirstBlockCache(nets, threshold) if threshold else None,
    without_layers=layer_runs.WithoutLayers,
    with_image=ImageContext,
    is_flow_map=nets.dit.config.flow_map > 0,
  )


def samplers(
  experiment: Experiment,
  nets: Networks,
  settings: SamplingSettings,
  *,
  latent: tuple[int, int, int] | None = None,
) -> dict[str, Sampler]:
  """The sampler of each transformer that has steps, in order.

  Returns:
    samplers by 'dit', and 'dit_2' for the transformer below the boundary.
  """
  high = sampler(experiment, nets, settings, latent=latent)
  if settings.boundary is None:
    return {'dit': high}
  boundary = high.schedule.steps_from(settings.boundary)
  low_settings = high.settings
  if settings.guidance_2 is not None:
    low_settings = dataclasses.replace(
      low_settings, guidance=settings.guidance_2
    )
  parts = {
    'dit': dataclasses.replace(high, step_range=(0, boundary)),
    'dit_2': dataclasses.replace(
      high,
      step_range=(boundary, high.schedule.steps),
      settings=low_settings,
    ),
  }
  return {name: part for name, part in parts.items() if part.steps}
