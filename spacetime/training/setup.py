"""Checks everything of a run before anything is written or compiled."""

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from absl import logging

from spacetime import SettingError, SettingWarning, checkpoint
from spacetime.checkpoint import init_weights, load
from spacetime.checkpoint.interop import network_files
from spacetime.config import mesh as mesh_lib
from spacetime.config import networks as networks_lib
from spacetime.config import packing, parse, samplers
from spacetime.config.experiment import Experiment
from spacetime.data import geometry, latent_cache
from spacetime.data import packing as packing_lib
from spacetime.media import files as files_lib
from spacetime.models.networks import Networks
from spacetime.models.transformer import attention_plan
from spacetime.training import flow_map_loss, pca_init, state, tasks
from spacetime.training import optimizer as optimizer_lib

AUTOENCODER = 'autoencoder'  # the run's copy of a trained one
# Config keys that may change on resume because they do not affect the learned
# state. More steps, and a later decay, are how a run on its plateau is made
# longer; the distributions of noise levels and of conditioning frames may move
# during training, and a later stage's captions may be longer.
FREE_KEYS = (
  'train.steps',
  'optimizer.decay',
  'flow.mean',
  'flow.std',
  'flow.shift',
  'flow.low',
  'flow.high',
  'conditioning',
  'text.length',
  'train.ema',
  'train.held_out',
  'train.log_every',
  'train.evaluate_every',
  'train.sheet_every',
  'train.probe_every',
  'train.scored_clips',
  'train.checkpoint_every',
  'train.keep',
  'train.skip_nan',
  'train.spike',
  'autoencoder.latents_mean',
  'autoencoder.latents_std',
  'data.dir',
  'data.render',
  'data.stages',
  'data.max_unreadable',
  'data.changes',
  # Those of the cache may not change.
  'source.path',
  'source.autoencoder',
  'source.text',
  'source.image_encoder',
  'mesh',
  'model.attention',
  'model.context_attention',
  'model.remat',
  'sampling',
)
SECTIONS = {
  'autoencoder': ('autoencoder', 'reconstruction'),
  'diffusion': (
    *('autoencoder', 'text', 'model', 'flow', 'conditioning', 'sampling'),
  ),
}


@dataclasses.dataclass(frozen=True)
class Setup:
  """A checked run, of which nothing has been written or compiled.

  Attributes:
    experiment: as the run's config.json will store it: with the run's own copy
      of a trained autoencoder, and fingerprints of its weights and its cache.
    mesh: devices of the run.
    optimizer: transformation of gradients.
    task: loss and initial parameters.
    nets: the networks; None in the autoencoder's stage.
    autoencoder: the autoencoder.
    autoencoder_folder: folder of a trained one, which the run copies; '' for
      none.
    frozen: its parameters; {} where it has none or they are trained.
    shapes: the abstract state on the mesh.
    base: weights to start from, or of which low-rank adapters are trained;
      None for random weights, or once a run has trained on from them.
    patchify: the host's patchify where clips are packed into rows.
    grid: (frames, height, width) -> Geometry of a clip.
  """

  experiment: Experiment
  mesh: jax.sharding.Mesh
  optimizer: optax.GradientTransformation
  task: tasks.Task
  nets: Networks | None
  autoencoder: Any
  autoencoder_folder: str
  frozen: dict
  shapes: state.State
  base: init_weights.Base | init_weights.AutoencoderBase | None
  patchify: packing_lib.Patchify | None = None
  grid: Callable[..., geometry.Geometry] | None = None


def check(
  experiment: Experiment,
  workdir: str,
  *,
  init_from: str | None = None,
  files: network_files.Files = network_files.NO_FILES,
) -> Setup:
  """Checks a run; writes nothing.

  Args:
    experiment: the experiment of the run.
    workdir: output folder, which may not exist yet.
    init_from: weights to start from; None starts from random ones.
    files: files of published networks, which replace those of `init_from`.

  Raises:
    ValueError: the config, the weights, or the contents of the output folder
      cannot work.
  """
  experiment.require('data', 'optimizer', 'mesh', 'train')
  experiment.require(*SECTIONS[experiment.stage])
  train = experiment.train
  optimizer = optimizer_lib.make_optimizer(
    experiment.optimizer, steps=train.steps
  )
  mesh = mesh_lib.mesh(experiment)
  nets = patchify = base = None
  frozen, folder = {}, ''
  if experiment.stage == 'autoencoder':
    check_autoencoder_stage(experiment, files)
    autoencoder = networks_lib.autoencoder(experiment.autoencoder)
    base, source = find_autoencoder_base(init_from, workdir, experiment)
    if source:
      experiment = parse.replace(experiment, {'source': source})
    task = tasks.reconstruction_task(experiment, autoencoder)
    patch = (1, 1, 1)
  else:
    if (checkpoint.absolute(workdir) / AUTOENCODER).exists():
      experiment = with_own_autoencoder(experiment)
    trained, folder = load.find_autoencoder(experiment, beside=workdir)
    nets = networks_lib.networks(experiment, autoencoder=trained)
    check_tokens(experiment, nets, mesh)
    frozen = load.load_own(trained, folder, mesh=mesh) if trained else {}
    autoencoder = nets.autoencoder
    patch = nets.dit.config.patch
    patchify = packing.make_patchify(experiment, autoencoder, patch, frozen)
    pca_init.rank(train.pca_init_rank, nets.dit.config)
    check_frozen(experiment, nets)
    base, source = find_base(
      init_from,
      workdir,
      nets,
      files=files,
      teacher=experiment.has_teacher,
    )
    check_flow_map(experiment, nets)
    samplers.sampler(experiment, nets, experiment.sampling)  # checks it
    if nets.dit.config.flow_map and (source or {}).get('noise_levels'):
      raise SettingError(
        'checkpoint',
        source['path'],
        'a transformer of all noise levels, not one of two, with '
        f'`model.flow_map`={nets.dit.config.flow_map}',
      )
    experiment = with_noise_levels(experiment, source)
    if experiment.has_teacher:
      check_teacher(experiment, base)
    records = {'source': source} if source else {}
    empty_SY = None
    if experiment.data.source.HAS_LATENTS:
      records |= check_cache(experiment, nets, source, workdir)
      if nets.dit.config.flow_map:
        empty_SY = latent_cache.Cache(experiment.data.dir).empty_SY
    task = tasks.diffusion_task(experiment, nets, empty_SY=empty_SY)
    experiment = parse.replace(with_own_autoencoder(experiment), records)
  if experiment.data.fps is None:
    raise SettingError(
      'data.fps', None, f'a number with `data.name`={experiment.data.name!r}'
    )
  checkpoint.check_config(workdir, experiment.values, free=FREE_KEYS)
  key = jax.random.key(experiment.seed)
  shapes = state.abstract_state(task.init, key, optimizer, mesh)
  if nets and (nets.lora.rank or experiment.has_teacher):  # beside the state
    load.sharded_shapes(lambda key: {'dit': nets.init(key)['dit']}, mesh)
  files_lib.check_writable(workdir)
  return Setup(
    experiment=experiment,
    mesh=mesh,
    optimizer=optimizer,
    task=task,
    nets=nets,
    autoencoder=autoencoder,
    autoencoder_folder=folder,
    frozen=frozen,
    shapes=shapes,
    base=base,
    patchify=patchify,
    grid=packing.grid(autoencoder, patch),
  )


def with_own_autoencoder(experiment: Experiment) -> Experiment:
  """Returns the experiment with the run's own copy of a trained autoencoder."""
  if experiment.autoencoder.kind != 'weights':
    return experiment
  return parse.replace(experiment, {'autoencoder.weights': AUTOENCODER})


def with_noise_levels(
  experiment: Experiment, source: Mapping | None
) -> Experiment:
  """The experiment with the noise levels that its base serves, where that is
  one of two transformers and the config sets none."""
  levels = (source or {}).get('noise_levels')
  if not levels:
    return experiment
  if experiment.flow.low is None and experiment.flow.high is None:
    low, high = levels
    return parse.replace(experiment, {'flow.low': low, 'flow.high': high})
  if experiment.flow.bounds != tuple(levels):
    logging.warning(
      'flow.low and flow.high are %s, and %s serves noise levels %s to %s',
      experiment.flow.bounds,
      source['path'],
      *levels,
    )
  return experiment


def check_tokens(
  experiment: Experiment, nets: Networks, mesh: jax.sharding.Mesh
) -> None:
  """Checks that the mesh divides the tokens of training and held-out clips.

  Raises:
    SettingError: it does not, or it splits packed rows.
  """
  data = experiment.data
  sizes = {data.size, tuple(data.crop or data.size)}
  if isinstance(data.packing, packing_lib.SequencePacking):
    attention_plan.check_packed(mesh)
  else:
    sizes |= set(data.shapes)
  for size in sorted(sizes):
    grid = networks_lib.clip_geometry(data, nets, size)
    mesh_lib.check_model(nets.dit.config, grid.tokens, mesh)


def check_autoencoder_stage(
  experiment: Experiment, files: network_files.Files
) -> None:
  """Refuses settings that only the transformer's stage has.

  Raises:
    SettingError: latents or mixed sizes as data, or files of networks.
  """
  data, stage = experiment.data, "in the stage 'autoencoder'"
  if data.source.HAS_LATENTS:
    raise SettingError('data.name', data.name, f'a source of videos {stage}')
  rows = isinstance(data.packing, packing_lib.SequencePacking)
  for name in ('mixed', 'packing'):
    if data.stages and not rows:
      break
    if getattr(data, name) is not None:
      raise SettingError(
        f'data.{name}', getattr(data, name), f'None, clips of one size, {stage}'
      )
  for name, value in dataclasses.asdict(files).items():
    if value:
      raise SettingError(name, value, f'None {stage}, which takes `checkpoint`')


def check_frozen(experiment: Experiment, nets: Networks) -> None:
  """Refuses a run whose frozen networks would run in every step.

  Raises:
    SettingError: published networks without a cache, or contact sheets without
      a decoder.
  """
  data = experiment.data
  wan = experiment.autoencoder.kind == 'wan'
  frozen = [
    *(["`autoencoder.kind`='wan'"] if wan else []),
    *(["`text.kind`='frozen'"] if nets.text_kind == 'frozen' else []),
  ]
  if frozen and not data.source.HAS_LATENTS:
    raise SettingError(
      'data.name',
      data.name,
      f"'cache' with {' and '.join(frozen)}, whose outputs do not change",
      hint='compute them once with spacetime encode, and set `data.dir` to '
      'that folder',
    )
  check_variant(experiment, nets)
  for name in ('probe_every', 'scored_clips'):
    value = getattr(experiment.train, name)
    if value and not data.source.HAS_MIXED_SIZES:
      raise SettingError(
        f'train.{name}',
        value,
        "0 without `data.name`='digits', whose clips can be judged",
      )
  if experiment.train.scored_clips and not experiment.train.sheet_every:
    raise SettingError(
      'train.scored_clips',
      experiment.train.scored_clips,
      '0 without `train.sheet_every`, since the clips of sheets are scored',
    )
  if wan and experiment.train.sheet_every:
    raise SettingError(
      'train.sheet_every',
      experiment.train.sheet_every,
      "0 with `autoencoder.kind`='wan', whose latents are cached: the run has "
      'no decoder',
    )
  if nets.lora.rank and experiment.optimizer.name != 'adamw':
    raise SettingError(
      'optimizer.name',
      experiment.optimizer.name,
      f"'adamw' with `lora.rank`={nets.lora.rank}",
    )


def check_variant(experiment: Experiment, nets: Networks) -> None:
  """Refuses settings that do not suit a model that sees known pixels beside
  its latents.

  Raises:
    SettingError: conditioning frames, or a missing image encoder.
  """
  model = nets.dit.config
  if model.sees == 'frames':
    return
  name = 'cond_channels' if model.cond_channels else 'control_channels'
  setting = f'`model.{name}`={getattr(model, name)}'
  if experiment.conditioning.weights[0] != sum(experiment.conditioning.weights):
    raise SettingError(
      'conditioning.none',
      experiment.conditioning.none,
      f'1, and 0 for all other kinds, with {setting}: the model sees known '
      'pixels beside its latents',
    )
  if not experiment.data.source.HAS_LATENTS:
    raise SettingError(
      'data.name',
      experiment.data.name,
      f"'cache' with {setting}, whose latents of known pixels spacetime encode "
      'writes',
    )
  if model.image_width and nets.image is None:
    raise SettingError(
      'image',
      None,
      f'a section of this name with `model.image_width`={model.image_width}',
    )


def check_flow_map(experiment: Experiment, nets: Networks) -> None:
  """Refuses settings that the training of a flow map does not have.

  Raises:
    SettingError: see the messages.
  """
  model = nets.dit.config
  if not model.flow_map:
    return
  data, flow = experiment.data, experiment.flow
  rows = data.batch_size
  baked = experiment.flow_map.guidance != 1
  least = max(2, experiment.train.accumulate)
  for name, value, right, expected in (
    (
      'model.cond_channels',
      model.cond_channels,
      not model.cond_channels,
      '0, a text-to-video model',
    ),
    (
      'model.control_channels',
      model.control_channels,
      not model.control_channels,
      '0, a text-to-video model',
    ),
    (
      'data.packing',
      data.packing,
      not isinstance(data.packing, packing_lib.SequencePacking),
      "None or `data.packing.kind`='buckets', batches of one size",
    ),
    (
      'data.batch_size',
      rows,
      bool(data.stages) or rows >= least,
      f'{least} or more',
    ),
    (
      'train.accumulate',
      experiment.train.accumulate,
      bool(data.stages)
      or flow_map_loss.velocity_rows(rows, experiment.flow_map)
      >= experiment.train.accumulate,
      'at most the clips of a batch that learn the velocity, '
      f'{flow_map_loss.velocity_rows(rows, experiment.flow_map)} of {rows}',
    ),
    (
      'conditioning.independent_noise_prob',
      experiment.conditioning.independent_noise_prob,
      not experiment.conditioning.independent_noise_prob,
      '0, one step for all frames of a clip',
    ),
    ('flow.low', flow.low, not flow.low, 'None, all noise levels'),
    ('flow.high', flow.high, flow.high in (None, 1), 'None, all noise levels'),
    (
      'sampling.guidance',
      experiment.sampling.guidance,
      not baked or experiment.sampling.guidance == 1,
      f'1 with `flow_map.guidance`={experiment.flow_map.guidance}, which '
      'becomes part of the weights',
    ),
  ):
    if not right:
      raise SettingError(
        name, value, f'{expected}, with `model.flow_map`={model.flow_map}'
      )


def check_teacher(experiment: Experiment, base: init_weights.Base) -> None:
  """Refuses guidance of a teacher that has guidance in its weights.

  Raises:
    SettingError: the teacher is a flow map, and would be guided twice.
  """
  guidance = experiment.flow_map.guidance
  if base.model.flow_map and guidance != 1:
    raise SettingError(
      'flow_map.guidance',
      guidance,
      f'1, since {base.path} is a flow map, whose weights include guidance, '
      "with `flow_map.teacher`='model'",
    )


def find_base(
  init_from: str | None,
  workdir,
  nets: Networks,
  *,
  files: network_files.Files = network_files.NO_FILES,
  teacher: bool = False,
) -> tuple[init_weights.Base | None, dict | None]:
  """Returns the weights to load and the record of the initial weights.

  A run that has trained on from all weights needs them no more; low-rank
  adapters always need the weights that they adapt, and flow maps a teacher.

  Raises:
    ValueError: see init_weights.open_base; or adapters of nothing.
  """
  always = nets.lora.rank or teacher
  workdir = checkpoint.absolute(workdir)
  saved, path = _saved_source(workdir), init_from
  if files and not (path or files.transformer):
    raise SettingError('transformer', None, 'a file, or `checkpoint`')
  if saved and not path and not files:
    if always or not checkpoint.has_step(workdir):
      path = saved['path']
  if init_from and not always and checkpoint.has_step(workdir):
    warnings.warn(
      SettingWarning(
        'checkpoint',
        init_from,
        f'no effect, since {workdir} continues from its own weights',
      ),
      stacklevel=2,
    )
  if not path and not files:
    if nets.lora.rank:
      raise SettingError(
        'checkpoint',
        None,
        f'the weights to adapt with `lora.rank`={nets.lora.rank}',
      )
    if teacher:
      raise SettingError(
        'checkpoint', None, "the teacher with `flow_map.teacher`='model'"
      )
    return None, saved
  base = init_weights.open_base(path, nets, files=files)
  layers, stored = nets.dit.config.layers, base.model.layers
  if layers != stored and teacher:
    raise SettingError(
      'model.layers', layers, f'{stored}, those of the teacher, {base.path}'
    )
  if layers != stored:
    logging.info(
      '%d layers of %s become %d by copies that add nothing at first',
      *(stored, base.path, layers),
    )
  source = base.source()
  if saved:  # a file of the transformer alone does not say these
    keys = ('autoencoder', 'text', 'image_encoder')
    source |= {
      key: saved[key] for key in keys if not source.get(key) and key in saved
    }
  return base, source


def find_autoencoder_base(
  init_from: str | None, workdir, experiment: Experiment
) -> tuple[init_weights.AutoencoderBase | None, dict | None]:
  """The same of the autoencoder's stage; see find_base."""
  workdir = checkpoint.absolute(workdir)
  saved, path = _saved_source(workdir), init_from
  if saved and not path and not checkpoint.has_step(workdir):
    path = saved['path']
  if not path:
    return None, saved
  base = init_weights.open_autoencoder(path, experiment.autoencoder)
  return base, base.source()


def _saved_source(workdir) -> dict | None:
  """The record of the weights that a run began with, if it began with any."""
  path = workdir / checkpoint.CONFIG
  return json.loads(path.read_text()).get('source') if path.is_file() else None


def check_cache(
  experiment: Experiment, nets: Networks, source, workdir
) -> dict:
  """Refuses latents or embeddings of other networks than the run's.

  Returns:
    values for the run's config: fingerprints of the cache, and its frame rate.

  Raises:
    ValueError: no cache, an incomplete or damaged one, or one of other networks
      or sizes.
  """
  folder, source = experiment.data.dir, source or {}
  cache = latent_cache.Cache(folder)
  info = cache.info
  own = init_weights.fingerprint_of_autoencoder(experiment, beside=workdir)
  networks = [
    (
      'latents',
      'autoencoder',
      own or source.get('autoencoder'),
      info.autoencoder,
    )
  ]
  if nets.text_kind == 'frozen':
    if not info.length:
      raise ValueError(
        f'{folder} has captions that are not embedded: expected embeddings '
        "with `text.kind`='frozen'; make them with spacetime encode "
        '--text=embeddings, or change `data.dir`'
      )
    networks.append(
      (
        'embeddings',
        'text encoder or tokenizer',
        source.get('text'),
        info.text,
      )
    )
  if nets.image is not None and info.image_encoder:
    networks.append(
      (
        'embeddings of images',
        'image encoder',
        source.get('image_encoder'),
        info.image_encoder,
      )
    )
  for contents, network, expected, actual in networks:
    if expected and expected != actual:
      raise ValueError(
        f'{folder} has {contents} of another {network}, {actual}: expected '
        f"those of {expected}, the run's; make them with spacetime encode, or "
        'change `data.dir`'
      )
  _check_sizes(experiment, nets, info)
  _check_moments(experiment, nets, info)
  cache.check()
  fingerprints = {'autoencoder': info.autoencoder, 'text': info.text}
  if info.image_encoder:
    fingerprints['image_encoder'] = info.image_encoder
  return {'cache': fingerprints, 'data.fps': info.fps}


def _check_moments(
  experiment: Experiment, nets: Networks, info: latent_cache.CacheInfo
) -> None:
  """Refuses latents of another normalisation than the run decodes.

  A config without one takes that of the weights.
  """
  for name, actual in (('latents_mean', info.mean), ('latents_std', info.std)):
    expected = getattr(nets.autoencoder, name)
    if actual and expected and not np.allclose(actual, expected, atol=1e-4):
      raise ValueError(
        f'{experiment.data.dir} has latents of another normalisation, '
        f'{actual}: expected `autoencoder.{name}`={expected}; change it, or '
        '`data.dir`'
      )


def _check_sizes(
  experiment: Experiment, nets: Networks, info: latent_cache.CacheInfo
) -> None:
  data = experiment.data
  model, image = nets.dit.config, (0, 0)
  if info.known != model.known_frames:
    raise ValueError(
      f'{data.dir} has {info.known or "no"} known frames beside its latents: '
      f'expected {model.known_frames or "none"}, as the model sees them; make '
      'it with spacetime encode and the weights that the run starts from as '
      '--checkpoint'
    )
  if info.control != model.control_channels:
    raise ValueError(
      f'{data.dir} has {info.control} channels of control latents: expected '
      f'{model.control_channels}, as the model has them; make it with '
      'spacetime encode and the weights that the run starts from as '
      '--checkpoint'
    )
  if nets.image is not None:
    images = 2 if model.image_tokens else 1
    image = images * nets.image.config.tokens, nets.image.config.hidden_size
  grid = networks_lib.clip_geometry(data, nets)
  sizes = {
    'image': (image, tuple(info.image)),
    'data.frames': (data.frames, info.frames),
    'data.height': (data.height, info.height),
    'data.width': (data.width, info.width),
    'autoencoder.z_dim': (nets.autoencoder.z_dim, info.latent[3]),
  }
  if data.size == (info.frames, info.height, info.width):  # strides differ
    latents = *grid.latent, nets.autoencoder.z_dim
    sizes['latents'] = latents, tuple(info.latent)
  if data.fps is not None and not math.isclose(data.fps, info.fps):
    sizes['data.fps'] = data.fps, info.fps
  if nets.text_kind == 'frozen':
    sizes['text.length'] = nets.text_length, info.length
    sizes['text.d_model'] = nets.text.width, info.features
  differences = [
    f'{key}={ours}, there {theirs}'
    for key, (ours, theirs) in sizes.items()
    if ours != theirs
  ]
  if differences:
    raise ValueError(
      f'{data.dir} is of other sizes than the config: '
      f'{"; ".join(differences)}; change these keys, or `data.dir`'
    )
