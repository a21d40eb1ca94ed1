"""The programs of a config, lowered for devices that need not be there."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from spacetime import sharding
from spacetime.config import mesh as mesh_lib
from spacetime.config import networks, parse
from spacetime.diffusion import conditioning, sampler
from spacetime.models import flops
from spacetime.sharding import chips
from spacetime.training import loop, state, step

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


def lower(config, program: str, devices) -> Lowered:
  """Lowers a program of a config for devices.

  Args:
    config: an experiment's ConfigDict.
    program: 'train': the step as the trainer runs it; 'sample': all steps of
      the solver; 'decode': the latents of one latent frame to pixels.
    devices: there or described.

  Raises:
    ValueError: what cannot work; see build.
  """
  if program not in PROGRAMS:
    raise ValueError(f'--program={program}: expected one of {PROGRAMS}')
  if config.get('stage') != 'diffusion':
    raise ValueError(
      f'stage={config.get("stage")!r}: expected the config of a transformer'
    )
  if config.autoencoder.kind == 'weights':
    raise ValueError(
      "autoencoder.kind='weights': expected a config whose autoencoder is "
      "'identity' or 'wan', since a dry run reads no weights"
    )
  mesh = mesh_lib.mesh(config, devices=devices)
  nets = networks.networks(config)
  tokens = networks.grids(config, nets).tokens
  mesh_lib.check_model(nets.dit.config, tokens, mesh)
  return _LOWER[program](config, nets, mesh)


def _train(config, nets: networks.Networks, mesh) -> Lowered:
  train = parse.train(config)
  optimizer = networks.make_optimizer(config)
  task = networks.diffusion_task(config, nets)
  key = jax.random.key(config.seed)
  at = state.abstract_state(task.init, key, optimizer, mesh)
  parts = {
    'parameters': at.params,
    'average': at.ema,
    'optimizer': at.opt_state,
    'frozen': _frozen(nets, mesh),
    'batch': _batch(config, nets, mesh),
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
  rate, model = networks.rates(config, nets), nets.dit.config
  clips = parse.data(config).batch_size
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
    _rows(config, mesh) // train.accumulate,
    rate.flops,
    executed,
  )


def _sample(config, nets: networks.Networks, mesh) -> Lowered:
  settings = parse.sampling(config)
  if settings.boundary is not None:
    settings = dataclasses.replace(settings, boundary=None, guidance_2=None)
  part = networks.sampler(config, nets, settings)
  clips = parse.data(config).batch_size
  latent = (*networks.grids(config, nets).latent, nets.autoencoder.z_dim)
  condition = jax.eval_shape(lambda: conditioning.pure_noise(clips, latent))
  keys = jax.eval_shape(lambda: sampler.clip_keys(0, clips))
  carry = jax.eval_shape(part.begin, keys, condition)
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
    lowered = jax.jit(part.advance, donate_argnums=1).lower(
      params, parts['latents'], *parts['text'], parts['given']
    )
  rate = networks.rates(config, nets)
  each = rate.flops / (2 if nets.lora.rank else 3)
  total = each * settings.steps * (2 if guided else 1)
  options = chips.options(mesh.devices.flat[0].device_kind)
  rows = _rows(config, mesh)
  return Lowered(lowered, parts, mesh, rows, total, total, options)


def _decode(config, nets: networks.Networks, mesh) -> Lowered:
  clips, codec = parse.data(config).batch_size, nets.autoencoder
  _, height, width = networks.grids(config, nets).latent
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
  rows = _rows(config, mesh)
  return Lowered(lowered, parts, mesh, rows, options=options)


_LOWER = {'train': _train, 'sample': _sample, 'decode': _decode}


def _rows(config, mesh) -> int:
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  return parse.data(config).batch_size // ways


def _batch(config, nets: networks.Networks, mesh) -> dict:
  """What the pipeline brings: pixels and tokens, or a cache's latents and
  texts."""
  data, grid = parse.data(config), networks.grids(config, nets)
  rows = data.batch_size
  if data.name == 'cache':
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
