"""A run of training, checked whole before anything is written or compiled."""

import dataclasses
import json
from typing import Any

import jax

from spacetime import checkpoint
from spacetime.checkpoint import init_weights, load
from spacetime.config import mesh as mesh_lib
from spacetime.config import networks as networks_lib
from spacetime.config import packing, parse
from spacetime.data import latent_cache
from spacetime.data import packing as packing_lib
from spacetime.media import files
from spacetime.training import pca_init, state

KEPT = 'autoencoder'  # where a run has its copy of a trained one
# Keys that a resumed run may change: they do not bear on what was learnt. More
# steps, and a later decay, are how a run on its plateau is made longer; levels
# may move as it learns.
FREE = (
  'train.steps',
  'optimizer.decay',
  'flow.mean',
  'flow.std',
  'flow.shift',
  'train.ema',
  'train.held_out',
  'train.log_every',
  'train.evaluate_every',
  'train.sheet_every',
  'train.checkpoint_every',
  'train.keep',
  'train.skip_nan',
  'train.spike',
  'autoencoder.latents_mean',
  'autoencoder.latents_std',
  'data.dir',
  'data.render',
  'source.path',
  'mesh',
  'model.attention',
  'model.context_attention',
  'model.remat',
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
    base: the weights to start from, or that low-rank pairs are of; None where
      there are none, or the run has gone on from them.
    origin: what the run remembers of its base and its cache, as sections.
    cut: clips to patches, where they are packed into rows.
  """

  config: Any
  data: parse.DataConfig
  train: parse.TrainConfig
  mesh: jax.sharding.Mesh
  optimizer: Any
  task: networks_lib.Task
  nets: networks_lib.Networks | None
  codec: Any
  frozen: dict
  shapes: state.State
  base: init_weights.Base | None
  origin: dict
  cut: packing_lib.Patchify | None = None


def check(config, workdir: str, *, checkpoint_path: str | None = None) -> Plan:
  """Refuses what cannot work.

  Args:
    config: an experiment's ConfigDict.
    workdir: of the run, there or not.
    checkpoint_path: of the weights to start from, if not from nothing.

  Raises:
    ValueError: the config, the weights, or what the work directory holds,
      cannot be.
  """
  if config.get('stage') not in parse.STAGES:
    raise ValueError(
      f'stage={config.get("stage")!r}: expected one of {parse.STAGES}'
    )
  data, train = parse.data(config), parse.train(config)
  optimizer, mesh = networks_lib.make_optimizer(config), mesh_lib.mesh(config)
  if (checkpoint.absolute(workdir) / KEPT).exists():
    config.autoencoder.weights = KEPT
  base, origin = None, {}
  if config.stage == 'autoencoder':
    check_autoencoder_stage(data, checkpoint_path)
    codec, nets, frozen, cut = networks_lib.autoencoder(config), None, {}, None
    task = networks_lib.reconstruction_task(config, codec)
  else:
    nets, frozen = networks(config, mesh, workdir)
    task, codec = networks_lib.diffusion_task(config, nets), nets.autoencoder
    cut = packing.cut(config, codec, nets.dit.config.patch)
    pca_init.rank(train.pca_init_rank, nets.dit.config)
    check_frozen(config, data, nets)
    base, source = find_base(config, checkpoint_path, workdir, nets)
    if source:
      origin['source'] = source
    if data.name == 'cache':
      origin['cache'] = check_cache(config, data, nets, source, workdir)
  plain = parse.plain(config) | origin
  if frozen:
    plain['autoencoder']['weights'] = KEPT
  checkpoint.check_config(workdir, plain, free=FREE)
  key = jax.random.key(config.seed)
  shapes = state.abstract_state(task.init, key, optimizer, mesh)
  files.check_writable(workdir)
  return Plan(
    config,
    data,
    train,
    mesh,
    optimizer,
    task,
    nets,
    codec,
    frozen,
    shapes,
    base,
    origin,
    cut,
  )


def networks(config, mesh, workdir) -> tuple[networks_lib.Networks, dict]:
  """The networks of a transformer's stage, and the autoencoder's parameters
  where they are at hand."""
  weights, frozen = load.load_autoencoder(config, beside=workdir, mesh=mesh)
  nets = networks_lib.networks(config, weights=weights)
  # Clips to train on may be cropped, held-out ones are whole.
  for size in (None, parse.data(config).crop):
    tokens = networks_lib.grids(config, nets, size).tokens
    mesh_lib.check_model(nets.dit.config, tokens, mesh)
  parse.sampling(config)
  return nets, frozen


def check_autoencoder_stage(data, checkpoint_path) -> None:
  """Refuses for an autoencoder what is of a transformer.

  Raises:
    ValueError: latents or mixed sizes for data, or weights to start from.
  """
  if data.name == 'cache':
    raise ValueError(
      "data.name='cache' in an autoencoder's stage: expected clips, 'digits' "
      "or 'folder'"
    )
  if data.world.mixed is not None or data.packing is not None:
    raise ValueError(
      "data.world.mixed or data.packing in an autoencoder's stage: expected "
      'None, clips of one size'
    )
  if checkpoint_path:
    raise ValueError(
      f"--checkpoint={checkpoint_path}: expected none in an autoencoder's "
      'stage, which starts from nothing'
    )


def check_frozen(config, data, nets: networks_lib.Networks) -> None:
  """Refuses a run whose frozen networks would have to run in every step.

  Raises:
    ValueError: published networks without a cache, or pictures without a
      decoder.
  """
  wan = config.autoencoder.kind == 'wan'
  told = [
    *(["autoencoder.kind='wan'"] if wan else []),
    *(["text.kind='frozen'"] if nets.text_kind == 'frozen' else []),
  ]
  if told and data.name != 'cache':
    raise ValueError(
      f"{' and '.join(told)} with data.name={data.name!r}: expected 'cache', "
      'since what these give does not change: compute it once with python -m '
      'spacetime encode, and name its folder in data.dir'
    )
  if wan and config.train.sheet_every:
    raise ValueError(
      f'train.sheet_every={config.train.sheet_every}: expected 0 with '
      "autoencoder.kind='wan', whose latents are cached: the run has "
      'nothing to decode with'
    )
  if nets.lora.rank and config.optimizer.name != 'adamw':
    raise ValueError(
      f'optimizer.name={config.optimizer.name!r} with lora.rank='
      f"{nets.lora.rank}: expected 'adamw'"
    )


def find_base(
  config, checkpoint_path, workdir, nets: networks_lib.Networks
) -> tuple[init_weights.Base | None, dict | None]:
  """The weights to load, and what the run remembers of those it began with.

  A run that has gone on from whole weights needs them no more; low-rank pairs
  always need what they are of.

  Raises:
    ValueError: see base.open_base; or pairs of nothing.
  """
  workdir = checkpoint.absolute(workdir)
  saved = None
  if (workdir / checkpoint.CONFIG).is_file():
    saved = json.loads((workdir / checkpoint.CONFIG).read_text()).get('source')
  gone_on = checkpoint.has_step(workdir)
  path = checkpoint_path
  if saved and not path and (nets.lora.rank or not gone_on):
    path = saved['path']
  if not path:
    if nets.lora.rank:
      raise ValueError(
        f'lora.rank={nets.lora.rank}: expected --checkpoint, the weights that '
        'the pairs are of'
      )
    return None, saved
  base = init_weights.open_base(path, nets)
  return base, base.source()


def check_cache(
  config, data, nets: networks_lib.Networks, source, workdir
) -> dict:
  """Refuses latents or texts of other networks than the run's.

  Returns:
    what the run remembers of the cache.

  Raises:
    ValueError: no cache, not whole, or made by other networks or of other
      sizes.
  """
  about = latent_cache.Cache(data.dir).about
  expected = init_weights.fingerprint_of_autoencoder(config, beside=workdir)
  if not expected and source:
    expected = source['autoencoder']
  if expected and expected != about.autoencoder:
    raise ValueError(
      f'{data.dir} has latents of another autoencoder, {about.autoencoder}: '
      f"expected those of {expected}, the run's; make them with python -m "
      'spacetime encode, or change data.dir'
    )
  if nets.text_kind == 'frozen':
    if not about.length:
      raise ValueError(
        f"text.kind='frozen': {data.dir} has captions that are not embedded: "
        'make it with python -m spacetime encode --text=embeddings, or change '
        'data.dir'
      )
    expected = (source or {}).get('text')
    if expected and expected != about.text:
      raise ValueError(
        f'{data.dir} has texts of another text encoder or tokenizer, '
        f"{about.text}: expected those of {expected}, the run's; make them "
        'with python -m spacetime encode, or change data.dir'
      )
  _check_sizes(data, nets, about)
  return {'autoencoder': about.autoencoder, 'text': about.text}


def _check_sizes(
  data, nets: networks_lib.Networks, about: latent_cache.About
) -> None:
  world = data.world
  pairs = {
    'data.world.frames': (world.frames, about.frames),
    'data.world.height': (world.height, about.height),
    'data.world.width': (world.width, about.width),
    'autoencoder.z_dim': (nets.autoencoder.z_dim, about.latent[3]),
  }
  if nets.text_kind == 'frozen':
    pairs['text.length'] = nets.text_length, about.length
    pairs['text.d_model'] = nets.text.width, about.features
  told = [
    f'{key}={wanted}, there {have}'
    for key, (wanted, have) in pairs.items()
    if wanted != have
  ]
  if told:
    raise ValueError(
      f'{data.dir} is of other sizes than the config: {"; ".join(told)}; '
      'change these keys, or data.dir'
    )
