"""Programs of an experiment, lowered for devices that need not exist here."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from spacetime import SettingError, sharding
from spacetime.config import mesh as mesh_lib
from spacetime.config import networks, samplers
from spacetime.config import packing as packing_lib
from spacetime.config.experiment import Experiment
from spacetime.data import batches, packing
from spacetime.diffusion import sampler
from spacetime.models import flops
from spacetime.models.autoencoder import identity
from spacetime.pipeline import conditions, generate
from spacetime.sharding import chips
from spacetime.training import flow_map_loss, loop, losses, state, step, tasks
from spacetime.training import optimizer as optimizer_lib

PROGRAMS = ('train', 'held_out', 'sample', 'decode')
# Steps that may be dispatched at once: a batch each lies on the device.
IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Lowered:
  """A lowered program with the shapes and shardings of its arguments.

  Attributes:
    lowered: the result of jax.jit(...).lower(...).
    parts: name of an argument -> tree of shapes with shardings.
    mesh: the mesh.
    rows: rows of the batch that a device holds at once.
    flops: model FLOPs of all devices; 0 if not counted.
    dense: FLOPs that run outside of attention kernels, recomputation included.
    attention: FLOPs that attention kernels run.
    waiting: batches on a device beside the one among `parts`.
    options: compiler options.
    fewer: settings that make the rows of a device fewer; '' if none does.
    single: what helps where a device holds a single row; '' if it depends.
  """

  lowered: jax.stages.Lowered
  parts: dict
  mesh: jax.sharding.Mesh
  rows: int
  flops: float = 0.0
  dense: float = 0.0
  attention: float = 0.0
  waiting: int = 0
  options: dict = dataclasses.field(default_factory=dict)
  fewer: str = ''
  single: str = ''


def lower(
  experiment: Experiment, program: str, devices: Sequence[jax.Device]
) -> Lowered:
  """Lowers a program of an experiment for devices.

  Args:
    experiment: experiment of a transformer.
    program: 'train' is the training step as the trainer runs it, of batches
      of several sizes that of the one with the most tokens; 'held_out'
      the loss of held-out clips, which runs between steps; 'sample' a step of
      the solver, with all branches of guidance, as the pipeline runs it;
      'decode' one latent frame to pixels.
    devices: real ones, or descriptions.

  Raises:
    SettingError: an experiment that cannot be lowered, or sizes that the mesh
      does not divide.
  """
  if program not in PROGRAMS:
    raise SettingError('program', program, f'one of {PROGRAMS}')
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
  if program == 'sample':  # branches of guidance may share the devices
    experiment.require('mesh')
    mesh = sharding.make_mesh(experiment.mesh, devices=devices)
  else:
    mesh = mesh_lib.mesh(experiment, devices=devices)
  nets = networks.networks(experiment)
  grid = networks.clip_geometry(experiment.data, nets)
  tokens = clip_tokens(experiment, nets) if program == 'train' else grid.tokens
  mesh_lib.check_model(nets.dit.config, tokens, mesh)
  return _LOWER[program](experiment, nets, mesh)


def clip_tokens(experiment: Experiment, nets: networks.Networks) -> int:
  """Tokens of a row of the training batch that `lower` describes: of a clip,
  or of a packed row."""
  if isinstance(experiment.data.packing, packing.SequencePacking):
    return experiment.data.packing.length
  size, _ = _largest_batch(experiment, nets)
  return networks.clip_geometry(experiment.data, nets, size).tokens


def _largest_batch(
  experiment: Experiment, nets: networks.Networks
) -> tuple[tuple[int, int, int], int]:
  grid = packing_lib.grid(nets.autoencoder, nets.dit.config.patch)
  return batches.largest_batch(experiment.data, grid)


def _train(
  experiment: Experiment, nets: networks.Networks, mesh: jax.sharding.Mesh
) -> Lowered:
  experiment.require('optimizer')
  train = experiment.train
  optimizer = optimizer_lib.make_optimizer(
    experiment.optimizer, steps=train.steps
  )
  task = _task(experiment, nets)
  key = jax.random.key(experiment.seed)
  abstract = state.abstract_state(task.init, key, optimizer, mesh)
  parts = {
    'parameters': abstract.params,
    'average': abstract.ema,
    'optimizer': abstract.opt_state,
    'frozen': _frozen(experiment, nets, mesh),
    'batch': _train_batch(experiment, nets, mesh),
  }
  rows = next(iter(parts['batch'].values())).shape[0]
  train_step = step.make_step(
    task.loss,
    optimizer,
    ema=train.ema,
    accumulate=train.accumulate,
    limit=train.limit,
    draw=task.draw,
  )
  with jax.set_mesh(mesh):
    lowered = loop.jit_step(train_step, abstract, mesh).lower(
      abstract, parts['frozen'], parts['batch'], _replicated(key, mesh)
    )
  shards = sharding.num_shards('batch', mesh)
  return Lowered(
    lowered,
    parts,
    mesh,
    rows // shards // train.accumulate,
    *training_flops(experiment, nets),
    IN_FLIGHT - 1,
    fewer=f'train.accumulate={rows // shards}, or a smaller data.batch_size',
  )


def training_flops(
  experiment: Experiment, nets: networks.Networks
) -> tuple[float, float, float]:
  """FLOPs of a training step on all devices: of the model, and those that run
  without and in attention kernels. Zeros where they are not counted."""
  dense, attended, total = _forward_flops(experiment, nets)
  remat = nets.dit.config.remat
  more = tasks.more_predictions(experiment)
  return (
    total,
    flops.executed_dense(dense, remat=remat, frozen=nets.lora.rank > 0)
    + more * dense,
    flops.executed_attention(attended, remat=remat) + more * attended,
  )


def _task(experiment: Experiment, nets: networks.Networks) -> tasks.Task:
  """The training stage, with an empty caption of zeros."""
  empty_SY = np.zeros((nets.text_length, nets.text.width), np.float32)
  return tasks.diffusion_task(experiment, nets, empty_SY=empty_SY)


def _forward_flops(
  experiment: Experiment, nets: networks.Networks
) -> tuple[float, float, float]:
  """FLOPs of a forward pass of the batch without and in attention kernels,
  and the model FLOPs of a training step; zeros where they are not counted."""
  rate, model = tasks.rates(experiment, nets), nets.dit.config
  if not rate.flops:
    return 0.0, 0.0, 0.0
  attended = flops.attention(
    tokens=rate.tokens / rate.clips,
    text_tokens=nets.text_length,
    width=model.width,
  )
  attended *= rate.clips * model.layers
  passes = (2 if nets.lora.rank else 3) + tasks.more_predictions(experiment)
  forward = rate.flops / passes
  return forward - attended, attended, rate.flops


def _held_out(
  experiment: Experiment, nets: networks.Networks, mesh: jax.sharding.Mesh
) -> Lowered:
  experiment.require('optimizer', 'train')
  train = experiment.train
  optimizer = optimizer_lib.make_optimizer(
    experiment.optimizer, steps=train.steps
  )
  task = _task(experiment, nets)
  key = jax.random.key(experiment.seed)
  abstract = state.abstract_state(task.init, key, optimizer, mesh)
  shards = sharding.num_shards('batch', mesh)
  rows = -(-train.held_out // shards) * shards  # as training/hooks.py has it
  parts = {
    'average': abstract.ema,
    'frozen': _frozen(experiment, nets, mesh),
    'batch': _batch(experiment, nets, mesh, rows=rows),
  }
  with jax.set_mesh(mesh):
    lowered = jax.jit(task.held_out).lower(
      abstract.ema, parts['frozen'], parts['batch']
    )
  # The state of the training lies beside it.
  parts |= {'parameters': abstract.params, 'optimizer': abstract.opt_state}
  dense, attended, _ = _forward_flops(experiment, nets)
  timesteps = losses.held_out_timesteps(experiment.flow)
  share = len(timesteps) * rows / experiment.data.batch_size
  dense, attended = dense * share, attended * share
  return Lowered(
    lowered,
    parts,
    mesh,
    rows // shards,
    dense + attended,
    dense,
    attended,
    fewer='a smaller train.held_out',
  )


def _sample(
  experiment: Experiment, nets: networks.Networks, mesh: jax.sharding.Mesh
) -> Lowered:
  experiment.require('sampling', 'flow')
  settings = experiment.sampling
  if settings.boundary is not None:
    settings = dataclasses.replace(settings, boundary=None, guidance_2=None)
  part = samplers.sampler(experiment, nets, settings)
  clips = experiment.data.batch_size
  latent = networks.clip_geometry(experiment.data, nets).latent
  cond = jax.eval_shape(lambda: conditions.empty(nets, latent, batch=clips))
  keys = jax.eval_shape(lambda: sampler.clip_keys(0, clips))
  initial = jax.eval_shape(part.init, keys, cond)
  text = jax.ShapeDtypeStruct(
    (clips, nets.text_length, nets.text.width), jnp.float32
  )
  guided = settings.guidance != 1.0
  params = {'dit': _transformer(nets, mesh)}
  start = generate.start_program(part)
  with jax.set_mesh(mesh):
    at, context = jax.eval_shape(
      start, params, initial, text, text if guided else None, cond
    )
    parts = {
      'parameters': params,
      'latents': _sharded_rows(at, mesh, clips),
      'text': _sharded_context(context, mesh),
      'conditioning': _sharded_rows(cond, mesh),
    }
    lowered = jax.jit(generate.step_program(part), donate_argnums=1).lower(
      *parts.values(), jax.ShapeDtypeStruct((), jnp.int32)
    )
  dense, attended = sampling_flops(experiment, nets)
  shards = sharding.num_shards('batch', mesh)
  return Lowered(
    lowered,
    parts,
    mesh,
    -(-clips * len(settings.make_guidance().branches) // shards),
    dense + attended,
    dense,
    attended,
    options=chips.options(mesh.devices.flat[0].device_kind),
    fewer='a smaller data.batch_size' if clips > shards else '',
  )


def sampling_flops(
  experiment: Experiment, nets: networks.Networks
) -> tuple[float, float]:
  """FLOPs of a solver step of a batch, all branches of guidance together: those
  without and in attention kernels."""
  dense, attended, _ = _forward_flops(experiment, nets)
  passes = len(experiment.sampling.make_guidance().branches)
  return dense * passes, attended * passes


def _decode(
  experiment: Experiment, nets: networks.Networks, mesh: jax.sharding.Mesh
) -> Lowered:
  clips, autoencoder = experiment.data.batch_size, nets.autoencoder
  _, height, width = networks.clip_geometry(experiment.data, nets).latent
  z = jax.ShapeDtypeStruct(
    (clips, 1, height, width, autoencoder.z_dim), jnp.float32
  )
  params = jax.eval_shape(autoencoder.init, jax.random.key(0))
  cache, _ = jax.eval_shape(autoencoder.decode_first, params, z)
  parts = {
    'parameters': _sharded_params({'autoencoder': params}, mesh)['autoencoder'],
    'cache': _sharded_rows(cache, mesh, clips),
    'latents': _sharded_rows(z, mesh),
  }
  with jax.set_mesh(mesh):
    lowered = jax.jit(autoencoder.decode_step).lower(
      parts['parameters'], parts['cache'], parts['latents']
    )
  options = chips.options(mesh.devices.flat[0].device_kind)
  return Lowered(
    lowered,
    parts,
    mesh,
    _rows(experiment, mesh),
    options=options,
    fewer='a smaller data.batch_size',
    single='one clip is most of it: decode it in tiles, by --decode_tiles',
  )


_LOWER = {
  'train': _train,
  'held_out': _held_out,
  'sample': _sample,
  'decode': _decode,
}


def _rows(experiment: Experiment, mesh: jax.sharding.Mesh) -> int:
  """Returns the rows of a batch that a device holds."""
  return experiment.data.batch_size // sharding.num_shards('batch', mesh)


def _train_batch(
  experiment: Experiment, nets: networks.Networks, mesh: jax.sharding.Mesh
) -> dict:
  """Returns shapes of a training batch: of packed rows, or of clips of the size
  with the most tokens."""
  data = experiment.data
  if isinstance(data.packing, packing.SequencePacking):
    shapes = _packed_rows(experiment, nets)
  else:
    size, rows = _largest_batch(experiment, nets)
    shapes = _batch(experiment, nets, mesh, rows=rows, size=size)
  if data.stages:
    rows = shapes['tokens' if 'tokens' in shapes else 'text'].shape[:-1]
    rows = rows if nets.text_kind != 'frozen' else rows[:-1]
    for name in ('shift', 'cond'):
      shapes[name] = jax.ShapeDtypeStruct(rows, jnp.float32)
  return _sharded_rows(shapes, mesh)


def _packed_rows(experiment: Experiment, nets: networks.Networks) -> dict:
  """Returns shapes of packed rows, those of packing.collate."""
  sizes, rows = experiment.data.packing, experiment.data.batch_size
  values = nets.dit.config.patch_volume
  pixels = isinstance(nets.autoencoder, identity.IdentityAutoencoder)
  clip = {
    'patches': np.zeros((1, values), np.uint8 if pixels else np.float32),
    'grid': np.ones(3, np.int32),
  }
  if nets.text_kind == 'frozen':
    clip['text'] = np.zeros((nets.text_length, nets.text.width), np.float32)
  else:
    clip['tokens'] = np.zeros(nets.text_length, np.int32)
  return {
    name: jax.ShapeDtypeStruct((rows, *array.shape), array.dtype)
    for name, array in packing.collate([clip], sizes).items()
  }


def _batch(
  experiment: Experiment,
  nets: networks.Networks,
  mesh: jax.sharding.Mesh,
  *,
  rows: int,
  size: tuple[int, int, int] | None = None,
) -> dict:
  """Returns shapes of a batch: pixels or latents, tokens or embeddings."""
  data = experiment.data
  grid = networks.clip_geometry(data, nets, size)
  if data.source.HAS_LATENTS:
    shapes = {'latents': (rows, *grid.latent, nets.autoencoder.z_dim)}
    dtypes = {'latents': jnp.float32}
    if nets.dit.config.cond_channels:
      shapes['cond_latents'] = shapes['latents']
      dtypes['cond_latents'] = jnp.float32
    if nets.dit.config.control_layers:
      channels = nets.dit.config.control_channels
      shapes['control_latents'] = (rows, *grid.latent, channels)
      dtypes['control_latents'] = jnp.float32
    if nets.image is not None:
      images = 2 if nets.dit.config.known_frames == 'ends' else 1
      config = nets.image.config
      shapes['image'] = (rows, images * config.tokens, config.hidden_size)
      dtypes['image'] = jnp.float32
  else:
    shapes = {'frames': (rows, grid.frames, grid.height, grid.width, 3)}
    dtypes = {'frames': jnp.uint8}
  if nets.text_kind == 'frozen':
    shapes['text'] = (rows, nets.text_length, nets.text.width)
    dtypes['text'] = jnp.float32
  else:
    shapes['tokens'] = (rows, nets.text_length)
    dtypes['tokens'] = jnp.int32
  return _sharded_rows(
    {k: jax.ShapeDtypeStruct(shapes[k], dtypes[k]) for k in shapes}, mesh
  )


def _frozen(
  experiment: Experiment, nets: networks.Networks, mesh: jax.sharding.Mesh
) -> dict:
  """Returns shapes of the frozen transformer below LoRA weights, or of the
  teacher of a flow map."""
  if nets.lora.rank:
    return {'dit': _transformer(nets, mesh)}
  if not experiment.has_teacher:
    return {}
  teacher = {'dit': _transformer(nets, mesh)}
  if nets.text_kind == 'trained':
    shapes = jax.eval_shape(nets.init, jax.random.key(0))
    teacher['text'] = _sharded_params({'text': shapes['text']}, mesh)['text']
  return {flow_map_loss.TEACHER: teacher}


def _transformer(nets: networks.Networks, mesh):
  """Returns shapes of the transformer in its compute dtype, as loaded."""
  shapes = jax.eval_shape(nets.init, jax.random.key(0))['dit']
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, nets.dit.config.dtype), shapes
  )
  return _sharded_params({'dit': shapes}, mesh)['dit']


def _sharded_params(params, mesh: jax.sharding.Mesh):
  """Returns shapes of parameters with their shardings."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    params,
    sharding.param_shardings(params, mesh),
  )


def _sharded_rows(tree, mesh: jax.sharding.Mesh, rows: int | None = None):
  """Returns shapes with rows over data and fsdp, if these divide them; counters
  are replicated."""
  by_rows = sharding.batch_sharding(mesh)

  def leaf(x):
    if not x.ndim or rows is not None and x.shape[0] != rows:
      return _replicated(x, mesh)
    if sharding.divisible_axis('batch', x.shape[0], mesh) is None:
      return _replicated(x, mesh)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_rows)

  return jax.tree.map(leaf, tree)


def _sharded_context(tree, mesh: jax.sharding.Mesh):
  """Returns shapes of a KV cache, with their rows and heads over the mesh."""

  def leaf(x):
    rows = sharding.divisible_axis('batch', x.shape[1], mesh)
    spec = sharding.spec(None, rows, None, 'heads', None)
    return jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
    )

  return jax.tree.map(leaf, tree)


def _replicated(x, mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
  """Returns a replicated shape."""
  replicated = NamedSharding(mesh, PartitionSpec())
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated)
