"""Builds the samplers of an experiment and sampling settings."""

import dataclasses
import math

from spacetime.config.experiment import Experiment
from spacetime.diffusion import flow, schedules
from spacetime.diffusion import sampler as sampler_lib
from spacetime.diffusion.settings import SamplingSettings
from spacetime.models.networks import Networks, Skipping


def sampler(
  experiment: Experiment,
  nets: Networks,
  settings: SamplingSettings,
  *,
  latent: tuple[int, int, int] | None = None,
) -> sampler_lib.Sampler:
  """The sampler of a model with one transformer.

  Args:
    experiment: of the model.
    nets: its networks.
    settings: of the sampler.
    latent: (f, h, w) of the clips. For a model trained on many sizes the shift
      holds for clips of flow.reference tokens and scales with those of
      `latent`.
  """
  trained = experiment.flow
  if latent is not None and trained.reference is not None:
    tokens = math.prod(latent) // math.prod(nets.dit.config.patch)
    here = dataclasses.replace(trained, shift=settings.shift)
    shift = float(flow.size_shift(here, tokens))
    settings = dataclasses.replace(settings, shift=shift)
  grid = settings.grid()
  nets = nets.with_rope_scaling(
    settings.rope_scaling, frames=experiment.data.max_frames
  )
  return sampler_lib.Sampler(
    transform=nets.transform,
    flow=trained,
    sigmas=grid.sigmas,
    timesteps=grid.timesteps,
    solver=settings.solver,
    temperature=settings.temperature,
    guidance=settings.rule(),
    prepare=nets.prepare,
    skipping=(
      Skipping(nets, settings.step_cache) if settings.step_cache else None
    ),
  )


def samplers(
  experiment: Experiment,
  nets: Networks,
  settings: SamplingSettings,
  *,
  latent: tuple[int, int, int] | None = None,
) -> dict[str, sampler_lib.Sampler]:
  """The sampler of each transformer that has steps, in order.

  Returns:
    samplers by 'dit', and 'dit_2' for the transformer below the boundary.
  """
  both = sampler(experiment, nets, settings, latent=latent)
  if settings.boundary is None:
    return {'dit': both}
  steps = len(both.timesteps)
  cut = schedules.Schedule(both.sigmas, both.timesteps).steps_from(
    settings.boundary
  )
  scale = settings.guidance_2
  low = both.guidance
  if scale is not None:
    low = dataclasses.replace(low, scale=scale)
  parts = {
    'dit': dataclasses.replace(both, span=(0, cut)),
    'dit_2': dataclasses.replace(both, span=(cut, steps), guidance=low),
  }
  return {k: part for k, part in parts.items() if part.span[0] < part.span[1]}
