"""The programs of a config, lowered for devices that need not be there."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from spacetime import SettingError, sharding
from spacetime.config import mesh as mesh_lib
from spacetime.config import networks, samplers
from spacetime.config.experiment import Experiment
from spacetime.diffusion import conditioning, sampler
from spacetime.models import flops
from spacetime.sharding import chips
from spacetime.training import loop, state, step, tasks
from spacetime.training import optimizer as optimizer_lib

PROGRAMS = ('train', 'sample', 'decode')


@dataclasses.dataclass(frozen=True)
class Lowered:
  """A program with the shapes and places of its arguments.

  Attributes:
    lowered: as jax.jit(...).lower gives it.
    parts: argument's name -> tree of shapes with shardings.
    mesh: on which it lies.
    rows: of the batch that a device holds at once.
    flops: model FLOPs, of all devices; 0 where not counted.
    executed: what runs, computed again included.
    options: of the compiler.
  """

  lowered: Any
  parts: dict
  mesh: jax.sharding.Mesh
  rows: int
  flops: float = 0.0
  executed: float = 0.0
  options: dict = dataclasses.field(default_factory=dict)


def lower(experiment: Experiment, program: str, devices) -> Lowered:
  """Lowers a program of a config for devices.

  Args:
    experiment: of a transformer.
    program: 'train': the step as the trainer runs it; 'sample': all steps of
      the solver; 'decode': the latents of one latent frame to pixels.
    devices: there or described.

  Raises:
    ValueError: what cannot work; see build.
  """
  if program not in PROGRAMS:
    raise ValueError(f'--program={program}: expected one of {PROGRAMS}')
  if experiment.stage != 'diffusion':
    raise SettingError(
      'stage', experiment.stage, "'diffusion', the config of a transformer"
    )
  experiment.require('autoencoder', 'data')
  if experiment.autoencoder.kind == 'weights':
    raise SettingError(
      'autoencoder.kind',
      'weights',
      "'identity' or 'wan', since a dry run reads no weights",
    )
  mesh = mesh_lib.mesh(experiment, devices=devices)
  nets = networks.networks(experiment)
  tokens = networks.clip_geometry(experiment.data, nets).tokens
  mesh_lib.check_model(nets.dit.config, tokens, mesh)
  return _LOWER[program](experiment, nets, mesh)


def _train(experiment: Experiment, nets: networks.Networks, mesh) -> Lowered:
  experiment.require('optimizer')
  train = experiment.train
  optimizer = optimizer_lib.make_optimizer(
    experiment.optimizer, steps=train.steps
  )
  task = tasks.diffusion_task(experiment, nets)
  key = jax.random.key(experiment.seed)
  at = state.abstract_state(task.init, key, optimizer, mesh)
  parts = {
    'parameters': at.params,
    'average': at.ema,
    'optimizer': at.opt_state,
    'frozen': _frozen(nets, mesh),
    'batch': _batch(experiment, nets, mesh),
  }
  made = step.make_step(
    task.loss,
    optimizer,
    ema=train.ema,
    accumulate=train.accumulate,
    limit=train.limit,
  )
  with jax.set_mesh(mesh):
    lowered = loop.jit_step(made, at, mesh).lower(
      at, parts['frozen'], parts['batch'], _whole(key, mesh)
    )
  rate, model = tasks.rates(experiment, nets), nets.dit.config
  clips = experiment.data.batch_size
  attended = (
    clips
    * model.layers
    * flops.attention(
      tokens=rate.tokens // clips,
      text_tokens=nets.text_length,
      width=model.width,
    )
  )
  executed = flops.executed(rate.flops / 3, attended, remat=model.remat)
  return Lowered(
    lowered,
    parts,
    mesh,
    _rows(experiment, mesh) // train.accumulate,
    rate.flops,
    executed,
  )


def _sample(experiment: Experiment, nets: networks.Networks, mesh) -> Lowered:
  experiment.require('sampling', 'flow')
  settings = experiment.sampling
  if settings.boundary is not None:
    settings = dataclasses.replace(settings, boundary=None, guidance_2=None)
  part = samplers.sampler(experiment, nets, settings)
  clips = experiment.data.batch_size
  latent = (
    *networks.clip_geometry(experiment.data, nets).latent,
    nets.autoencoder.z_dim,
  )
  condition = jax.eval_shape(lambda: conditioning.pure_noise(clips, latent))
  keys = jax.eval_shape(lambda: sampler.clip_keys(0, clips))
  carry = jax.eval_shape(part.init, keys, condition)
  text = jax.ShapeDtypeStruct(
    (clips, nets.text_length, nets.text.width), jnp.float32
  )
  guided = settings.guidance != 1.0
  params = {'dit': _transformer(nets, mesh)}
  parts = {
    'parameters': params,
    'latents': _rowwise(carry, mesh, clips),
    'text': _rowwise((text, text if guided else None), mesh),
    'given': _rowwise(condition, mesh),
  }
  with jax.set_mesh(mesh):
    lowered = jax.jit(part.run, donate_argnums=1).lower(
      params, parts['latents'], *parts['text'], parts['given']
    )
  rate = tasks.rates(experiment, nets)
  each = rate.flops / (2 if nets.lora.rank else 3)
  total = each * settings.steps * (2 if guided else 1)
  options = chips.options(mesh.devices.flat[0].device_kind)
  rows = _rows(experiment, mesh)
  return Lowered(lowered, parts, mesh, rows, total, total, options)


def _decode(experiment: Experiment, nets: networks.Networks, mesh) -> Lowered:
  clips, codec = experiment.data.batch_size, nets.autoencoder
  _, height, width = networks.clip_geometry(experiment.data, nets).latent
  z = jax.ShapeDtypeStruct((clips, 1, height, width, codec.z_dim), jnp.float32)
  params = jax.eval_shape(codec.init, jax.random.key(0))
  carry, _ = jax.eval_shape(codec.decode_first, params, z)
  parts = {
    'parameters': _placed({'autoencoder': params}, mesh)['autoencoder'],
    'carry': _rowwise(carry, mesh, clips),
    'latents': _rowwise(z, mesh),
  }
  with jax.set_mesh(mesh):
    lowered = jax.jit(codec.decode_step).lower(
      parts['parameters'], parts['carry'], parts['latents']
    )
  options = chips.options(mesh.devices.flat[0].device_kind)
  rows = _rows(experiment, mesh)
  return Lowered(lowered, parts, mesh, rows, options=options)


_LOWER = {'train': _train, 'sample': _sample, 'decode': _decode}


def _rows(experiment: Experiment, mesh) -> int:
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  return experiment.data.batch_size // ways


def _batch(experiment: Experiment, nets: networks.Networks, mesh) -> dict:
  """What the pipeline brings: pixels and tokens, or a cache's latents and
  texts."""
  data, grid = experiment.data, networks.clip_geometry(experiment.data, nets)
  rows = data.batch_size
  if data.source.HAS_LATENTS:
    shapes = {'latents': (rows, *grid.latent, nets.autoencoder.z_dim)}
    kinds = {'latents': jnp.float32}
  else:
    shapes = {'frames': (rows, grid.frames, grid.height, grid.width, 3)}
    kinds = {'frames': jnp.uint8}
  if nets.text_kind == 'frozen':
    shapes['text'] = (rows, nets.text_length, nets.text.width)
    kinds['text'] = jnp.float32
  else:
    shapes['tokens'] = (rows, nets.text_length)
    kinds['tokens'] = jnp.int32
  return _rowwise(
    {k: jax.ShapeDtypeStruct(shapes[k], kinds[k]) for k in shapes}, mesh
  )


def _frozen(nets: networks.Networks, mesh) -> dict:
  """What stays as it is beside low-rank pairs."""
  return {'dit': _transformer(nets, mesh)} if nets.lora.rank else {}


def _transformer(nets: networks.Networks, mesh):
  """In the dtype it computes in, as it is loaded to be run."""
  shapes = jax.eval_shape(nets.init, jax.random.key(0))['dit']
  half = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, nets.dit.config.dtype), shapes
  )
  return _placed({'dit': half}, mesh)['dit']


def _placed(params, mesh):
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    params,
    sharding.param_shardings(params, mesh),
  )


def _rowwise(tree, mesh, rows: int | None = None):
  """Rows over data and fsdp; what has none, such as a counter, whole."""
  place = sharding.batch_sharding(mesh)

  def leaf(x):
    if not x.ndim or rows is not None and x.shape[0] != rows:
      return _whole(x, mesh)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

  return jax.tree.map(leaf, tree)


def _whole(x, mesh):
  place = NamedSharding(mesh, PartitionSpec())
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
