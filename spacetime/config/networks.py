"""From a config to networks, tasks and samplers. What cannot work is refused
here, before anything is compiled."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping

from etils import epath

from spacetime.checkpoint import hub
from spacetime.config import packing as packing_lib
from spacetime.config import parse
from spacetime.config.parse import section, unpack
from spacetime.data import geometry, packing
from spacetime.diffusion import flow, schedules
from spacetime.diffusion import sampler as sampler_lib
from spacetime.models import flops, text_encoder
from spacetime.models.autoencoder import identity, wan
from spacetime.models.networks import Networks, Skipping
from spacetime.models.transformer import dit, lora
from spacetime.training import (
  autoencoder_loss,
  frame_conditioning,
  loop,
  losses,
  optimizer,
  packed_losses,
)


def autoencoder(config, *, weights: Mapping | None = None):
  """The autoencoder that the config names.

  Args:
    config: with an `autoencoder` section of kind 'identity', 'wan', or
      'weights' (a trained one, whose own config is `weights`).
    weights: the config beside those weights.
  """
  values = section(config, 'autoencoder')
  kind = values.pop('kind', None)
  if kind == 'identity':
    return unpack(values, identity.IdentityAutoencoder, 'autoencoder')
  if kind == 'wan':
    sizes = unpack(values, wan.WanAutoencoderConfig, 'autoencoder')
    return wan.WanAutoencoder(sizes)
  if kind == 'weights' and weights is not None:
    return autoencoder(weights)
  raise ValueError(
    f"autoencoder.kind={kind!r}: expected 'identity', 'wan' or 'weights'"
  )


def networks(config, *, weights: Mapping | None = None) -> Networks:
  """The networks of a transformer's config; see `autoencoder` for weights."""
  codec = autoencoder(config, weights=weights)
  values = section(config, 'text')
  length, kind = values.pop('length'), values.pop('kind', 'trained')
  if kind not in parse.TEXTS:
    raise ValueError(f'text.kind={kind!r}: expected one of {parse.TEXTS}')
  text = unpack(values, text_encoder.TextConfig, 'text')
  model = unpack(
    section(config, 'model'),
    dit.DiTConfig,
    'model',
    channels=codec.z_dim,
    text_width=text.d_model,
  )
  pairs = section(config, 'lora') if 'lora' in config else {}
  return Networks(
    codec,
    text_encoder.TextEncoder(text),
    dit.DiT(model),
    length,
    kind,
    unpack(pairs, lora.LoraConfig, 'lora'),
  )


def grids(config, nets: Networks, size=None) -> geometry.Geometry:
  """The grids of the config's clips, or of (frames, height, width)."""
  world = parse.data(config).world
  frames, height, width = size or (world.frames, world.height, world.width)
  return geometry.Geometry(
    frames,
    height,
    width,
    tuple(nets.autoencoder.stride),
    tuple(nets.dit.config.patch),
  )


@dataclasses.dataclass(frozen=True)
class Task:
  """A stage of training, as the loop wants it.

  Attributes:
    init: key -> params.
    loss: (params, frozen, batch, key) -> (scalar, metrics).
    held_out: (params, frozen, batch) -> metrics.
  """

  init: Callable
  loss: Callable
  held_out: Callable


def diffusion_task(config, nets: Networks) -> Task:
  """The transformer's stage."""
  task = losses.Diffusion(
    encode=nets.encode,
    embed=nets.embed,
    transform=nets.transform,
    flow=parse.flow_config(config),
    conditioning=unpack(
      section(config, 'conditioning'),
      frame_conditioning.FrameConditioningConfig,
      'conditioning',
    ),
    patch=nets.dit.config.patch,
  )
  if isinstance(parse.data(config).packing, packing.SequencePacking):
    rows = packed_losses.PackedDiffusion(task, nets.transform_packed)
    return Task(nets.init_trainable, rows.loss, task.held_out)
  return Task(nets.init_trainable, task.loss, task.held_out)


def reconstruction_stage(config, codec) -> autoencoder_loss.Reconstruction:
  """The autoencoder's stage, as functions of {'autoencoder': params}."""

  def posterior(params, video_BFHWC):
    found = codec.posterior(params['autoencoder'], video_BFHWC)
    return found.mean_Bfhwc, found.logvar_Bfhwc

  def decode_raw(params, z_Bfhwc):
    z_Bfhwc = codec.normalise(z_Bfhwc)
    return codec.decode_unclipped(params['autoencoder'], z_Bfhwc)

  weights = unpack(
    section(config, 'reconstruction'),
    autoencoder_loss.ReconstructionConfig,
    'reconstruction',
  )
  return autoencoder_loss.Reconstruction(posterior, decode_raw, weights)


def reconstruction_task(config, codec) -> Task:
  """The autoencoder's stage."""
  stage = reconstruction_stage(config, codec)

  def init(key):
    return {'autoencoder': codec.init(key)}

  return Task(init, stage.loss, stage.held_out)


def make_optimizer(config):
  """The optimizer of the config's run."""
  values = unpack(
    section(config, 'optimizer'), optimizer.OptimizerConfig, 'optimizer'
  )
  return optimizer.make_optimizer(values, steps=parse.train(config).steps)


def sampler(
  config,
  nets: Networks,
  settings: parse.SamplingConfig,
  *,
  latent: tuple[int, int, int] | None = None,
) -> sampler_lib.Sampler:
  """The sampler of these settings, for a model with one transformer.

  Of a model that has learnt many sizes the shift holds for clips of
  flow.reference tokens, and moves with those of `latent`, (f, h, w).
  """
  learnt = parse.flow_config(config)
  if latent is not None and learnt.reference is not None:
    tokens = math.prod(latent) // math.prod(nets.dit.config.patch)
    here = dataclasses.replace(learnt, shift=settings.shift)
    shift = float(flow.size_shift(here, tokens))
    settings = dataclasses.replace(settings, shift=shift)
  grid = settings.grid()
  longest = parse.data(config).longest
  nets = nets.with_rope_scaling(settings.rope_scaling, frames=longest)
  return sampler_lib.Sampler(
    transform=nets.transform,
    flow=learnt,
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
  config,
  nets: Networks,
  settings: parse.SamplingConfig,
  *,
  latent: tuple[int, int, int] | None = None,
) -> dict[str, sampler_lib.Sampler]:
  """The sampler of each transformer that has steps, in their order.

  Returns:
    by 'dit', and 'dit_2' for the one below the boundary, if there is one.
  """
  whole = sampler(config, nets, settings, latent=latent)
  if settings.boundary is None:
    return {'dit': whole}
  steps = len(whole.timesteps)
  cut = schedules.Schedule(whole.sigmas, whole.timesteps).steps_from(
    settings.boundary
  )
  scale = settings.guidance_2
  low = whole.guidance
  if scale is not None:
    low = dataclasses.replace(low, scale=scale)
  parts = {
    'dit': dataclasses.replace(whole, span=(0, cut)),
    'dit_2': dataclasses.replace(whole, span=(cut, steps), guidance=low),
  }
  return {k: part for k, part in parts.items() if part.span[0] < part.span[1]}


def rates(config, nets: Networks | None) -> loop.Rates:
  """Clips, tokens and model FLOPs of one step of training."""
  batch = parse.data(config).batch_size
  if nets is None:
    return loop.Rates(clips=batch)
  found = packing_lib.cut(config, nets.autoencoder, nets.dit.config.patch)
  if found is not None:
    clips, tokens = packing_lib.measure(config, found)
    return loop.Rates(clips=clips, tokens=tokens)  # FLOPs are not counted
  grid, model = grids(config, nets), nets.dit.config
  forward = flops.transformer(
    tokens=grid.tokens,
    text_tokens=nets.text_length,
    width=model.width,
    layers=model.layers,
    mlp=model.mlp,
    text_width=model.text_width,
    patch_volume=model.patch_volume,
    levels=grid.latent[0],
    frequencies=model.frequencies,
  )
  return loop.Rates(
    clips=batch,
    tokens=batch * grid.tokens,
    # Of frozen kernels there are no gradients to compute.
    flops=batch * (2 * forward if nets.lora.rank else flops.training(forward)),
  )


def resolve(path: str, *, beside: str | os.PathLike = '') -> str:
  """A folder: as given, beside a model, or one of the bundled ones by name.

  Raises:
    ValueError: there is none.
  """
  bundled = os.path.join(
    os.path.dirname(os.path.dirname(__file__)), 'assets', path
  )
  inside = os.path.join(os.fspath(beside), path) if beside else ''
  for candidate in (inside, path, bundled):
    if candidate and epath.Path(candidate).is_dir():  # of a bucket too
      return candidate
  if hub.is_name(path):
    return os.fspath(hub.fetch(path))
  raise ValueError(
    f'{path!r}: no such folder, and no model of that name is bundled; change '
    '--checkpoint or autoencoder.weights'
  )
