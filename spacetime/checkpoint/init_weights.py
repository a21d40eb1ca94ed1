"""Weights that a run starts from: published ones, or a run or weights folder.

A published model is a folder as diffusers writes it, or one of the transformers
in it (FOLDER/transformer_2), or a transformer's folder or file by itself.
"""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp

from spacetime import SettingError, checkpoint
from spacetime.checkpoint import deepen
from spacetime.checkpoint import load as load_lib
from spacetime.checkpoint.interop import (
  folders,
  network_files,
  parameters,
  parts,
  tokenizers,
)
from spacetime.checkpoint.locate import locate
from spacetime.config import networks
from spacetime.config.experiment import Experiment
from spacetime.config.sections import AutoencoderSection
from spacetime.data.tokenizer import Tokenizer
from spacetime.models.transformer import dit

# Fields of an autoencoder that do not shape its parameters.
FREE_AUTOENCODER_KEYS = (
  *('dtype', 'initial_logvar', 'latents_mean', 'latents_std'),
)
# Config keys of sizes that the transformer's section does not have.
KEYS = {'channels': 'autoencoder.z_dim', 'text_width': 'text.d_model'}


@dataclasses.dataclass(frozen=True)
class Base:
  """Weights that are opened and checked; no array has been read.

  Attributes:
    path: path or name of the weights.
    model: sizes of the transformer.
    fingerprint: fingerprint of a published transformer, or of all weights.
    autoencoder: fingerprint of the autoencoder; '' if there is none.
    text: fingerprint of the text encoder; '' if there is none.
    image_encoder: fingerprint of the image encoder; '' if there is none.
    part: the published transformer; None of a run or weights folder.
    pipeline: the published folder of the transformer, if there is one.
    folder: the run or weights folder; '' of a published model.
    trained_text: whether the text encoder was trained with the transformer.
    tokenizer: tokenizer of a run or weights folder.
    noise_levels: smallest and largest noise level that the transformer serves,
      where it is one of two; None serves all.
  """

  path: str
  model: dit.DiTConfig
  fingerprint: str
  autoencoder: str = ''
  text: str = ''
  image_encoder: str = ''
  part: parts.Part | None = None
  pipeline: str | None = None
  folder: str = ''
  trained_text: bool = False
  tokenizer: bytes | None = None
  noise_levels: tuple[float, float] | None = None

  def source(self) -> dict:
    """The section `source` of the config of a run that starts from it."""
    source = {
      'path': os.fspath(checkpoint.absolute(self.folder or self.path)),
      'fingerprint': self.fingerprint,
      'autoencoder': self.autoencoder,
      'text': self.text,
    }
    if self.image_encoder:
      source['image_encoder'] = self.image_encoder
    if self.noise_levels:
      source['noise_levels'] = list(self.noise_levels)
    return source

  def load(self, nets: networks.Networks, mesh, *, dtype=jnp.float32) -> dict:
    """Reads the parameters: {'dit'}, and 'text' if it was trained with it.

    Args:
      nets: networks of the run.
      mesh: mesh of the parameters.
      dtype: dtype of the transformer, except for parameters that the published
        code computes in float32; a text encoder gets float32. None keeps all.
    """
    if nets.dit.config.flow_map and not self.model.flow_map:
      base = self.load(changed(nets, flow_map=0.0), mesh, dtype=dtype)
      return with_second_time(base)
    layers = nets.dit.config.layers
    if layers > self.model.layers:
      base = self.load(
        changed(nets, layers=self.model.layers), mesh, dtype=dtype
      )
      return deepen.deepen(base, layers)
    if self.part is not None:
      return {'dit': self.part.load(mesh, dtype=dtype)}
    shapes = load_lib.sharded_shapes(nets.init, mesh, stored=self.folder)
    if not self.trained_text:
      shapes = {'dit': shapes['dit']}

    def kind(path, leaf):
      root, *names = [key.key for key in path]
      cast = dtype if root == 'dit' else dtype and jnp.float32
      target = parameters.target_dtype(root, '.'.join(names), leaf.dtype, cast)
      return jax.ShapeDtypeStruct(leaf.shape, target, sharding=leaf.sharding)

    shapes = jax.tree_util.tree_map_with_path(kind, shapes)
    return checkpoint.load_params(self.folder, shapes, tree='ema')


def changed(nets: networks.Networks, **fields) -> networks.Networks:
  """The networks with other fields of the transformer's config."""
  config = dataclasses.replace(nets.dit.config, **fields)
  return dataclasses.replace(nets, dit=nets.dit.clone(config=config))


def with_second_time(params: dict) -> dict:
  """Parameters of a flow map that computes at r = t what the model with one
  time does: both times are embedded alike."""
  tree = params['dit']
  ends = {
    f'end_{name}': jax.tree.map(jnp.copy, tree[f'time_{name}'])
    for name in ('in', 'out')
  }
  return params | {'dit': tree | ends}


@dataclasses.dataclass(frozen=True)
class AutoencoderBase:
  """Weights of an autoencoder that are opened and checked; none has been read.

  Attributes:
    path: path or name of the weights.
    folder: their folder.
    section: section of their own config.
    fingerprint: fingerprint of all weights.
    part: the published autoencoder; None of a run or weights folder.
  """

  path: str
  folder: str
  section: AutoencoderSection
  fingerprint: str
  part: parts.Part | None = None
  tokenizer: None = None

  def source(self) -> dict:
    """The section `source` of the config of a run that starts from it."""
    return {
      'path': os.fspath(checkpoint.absolute(self.folder)),
      'fingerprint': self.fingerprint,
    }

  def load(self, mesh) -> dict:
    """Reads the parameters, float32: {'autoencoder'}."""
    if self.part is not None:
      params = {'autoencoder': self.part.load(mesh, dtype=jnp.float32)}
    else:
      params = load_lib.load_own(self.section, self.folder, mesh=mesh)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


def open_autoencoder(path: str, section: AutoencoderSection) -> AutoencoderBase:
  """Opens an autoencoder's weights by path or name: a run, a weights folder, a
  bundled name or a published folder.

  Args:
    path: path or name.
    section: the autoencoder that is to start from them.

  Raises:
    ValueError: no weights, or those of another autoencoder.
  """
  located = locate(path)
  folder, part = located.folder, None
  if located.is_published:
    part = parts.open_part(pathlib.Path(folder) / 'vae', 'vae')
    stored = AutoencoderSection('wan', network=part.config)
    fingerprint = part.fingerprint()
  else:
    if located.kind == 'transformer':
      raise ValueError(f'{path} is a transformer: expected an autoencoder')
    experiment = checkpoint.read_experiment(folder)
    if experiment.stage != 'autoencoder':
      raise ValueError(
        f'{path} holds stage {experiment.stage!r}: expected an autoencoder, '
        "stage 'autoencoder'"
      )
    stored, fingerprint = (
      experiment.autoencoder,
      checkpoint.weights_hash(folder),
    )
  _check_autoencoder(path, section, stored)
  return AutoencoderBase(path, folder, stored, fingerprint, part)


def _check_autoencoder(
  path: str, section: AutoencoderSection, stored: AutoencoderSection
) -> None:
  sizes, there = (
    {'kind': s.kind} | dataclasses.asdict(s.network) for s in (section, stored)
  )
  differences = [
    f'autoencoder.{key}={sizes.get(key)!r}, there {there.get(key)!r}'
    for key in sizes | there
    if key not in FREE_AUTOENCODER_KEYS and sizes.get(key) != there.get(key)
  ]
  if differences:
    raise ValueError(
      f'{path} is an autoencoder of other sizes than the config: '
      f'{"; ".join(differences)}; take the experiment of that autoencoder'
    )


def open_base(
  path: str | None,
  nets: networks.Networks,
  *,
  files: network_files.Files = network_files.NO_FILES,
) -> Base:
  """Opens weights by path or name, and checks that they fit the networks.

  Args:
    path: path or name; None if there is a file of the transformer.
    nets: networks of the run, which may have more layers; see deepen.py.
    files: files of published networks, which replace those of the path.

  Raises:
    ValueError: no weights, or weights of another kind or of other sizes.
  """
  base = _open(path, files)
  sizes = dataclasses.asdict(nets.dit.config)
  stored = dataclasses.asdict(base.model)
  added = sizes['layers'] - stored['layers']
  # Adapters are of the blocks that there are, and a control block's place is
  # the number of a block.
  fixed = nets.lora.rank or base.model.control_layers
  if added > 0 and not fixed:
    if added > stored['layers']:
      raise SettingError(
        'model.layers',
        sizes['layers'],
        f'at most {2 * stored["layers"]}, twice as many as {base.path} has: '
        'each block can be followed by one copy',
      )
    stored['layers'] = sizes['layers']
  differences = [
    f'{KEYS.get(key, f"model.{key}")}={sizes[key]!r}, there {stored[key]!r}'
    for key in sizes
    if key not in ('dtype', 'remat') and sizes[key] != stored[key]
    # A flow map may start from a model with one time.
    if key != 'flow_map' or stored[key]
  ]
  if differences:
    raise ValueError(
      f'{base.path} has a transformer of other sizes than the config: '
      f'{"; ".join(differences)}; take the experiment of that model'
    )
  if nets.text_kind == 'trained' and not base.trained_text:
    raise SettingError(
      'text.kind',
      nets.text_kind,
      f"'frozen', since {base.path} has no text encoder that was trained with "
      'its transformer',
    )
  return base


def fingerprint_of_autoencoder(experiment: Experiment, *, beside) -> str:
  """The fingerprint of an experiment's autoencoder; '' of a published one."""
  section = experiment.autoencoder
  if section.kind == 'identity':
    return f'identity-{section.network.time}'
  if section.kind == 'weights':
    return checkpoint.weights_hash(
      locate(section.weights, beside=beside).folder
    )
  return ''


def _open(path: str | None, files: network_files.Files) -> Base:
  if path is None:
    return _published(files.transformer, files.transformer, None, files)
  located = locate(path)
  folder = pathlib.Path(located.folder)
  if located.is_published:
    if files.transformer:
      return _published(path, files.transformer, folder, files)
    if (folder / folders.SECOND).is_dir():
      raise SettingError(
        'checkpoint',
        path,
        f'one of its two transformers, {path}/transformer or '
        f'{path}/{folders.SECOND}',
      )
    return _published(path, folder / 'transformer', folder, files)
  if located.kind == 'transformer':
    root = located.pipeline and pathlib.Path(located.pipeline)
    files = network_files.with_transformer(files, folder)
    if files.transformer_2:
      raise SettingError(
        'checkpoint', path, 'one of its two transformers, a folder within it'
      )
    return _published(path, files.transformer, root, files)
  if files:
    raise SettingError('checkpoint', path, 'a published folder or file')
  return _own(path, located.folder)


def _published(
  path: str,
  transformer: str | os.PathLike,
  root: pathlib.Path | None,
  files: network_files.Files,
) -> Base:
  part = parts.open_part(transformer, 'transformer')
  paths = {}
  # None is needed for a cache, which has what they compute: a folder may lack
  # them.
  for kind in ('vae', 'text_encoder', 'image_encoder'):
    paths[kind] = getattr(files, kind)
    if not paths[kind] and root and (root / kind).is_dir():
      paths[kind] = root / kind
  autoencoder = text = image = ''
  if paths['vae']:
    autoencoder = parts.open_part(paths['vae'], 'vae').fingerprint()
  if files.image_encoder and not part.config.image_width:
    raise SettingError(
      'image_encoder',
      files.image_encoder,
      f'none, since {path} sees no embeddings of images',
    )
  if paths['image_encoder'] and part.config.image_width:
    encoder = parts.open_part(paths['image_encoder'], 'image_encoder')
    image = encoder.fingerprint()
  if paths['text_encoder']:
    encoder = parts.open_part(paths['text_encoder'], 'text_encoder')
    source = folders.find_tokenizer(
      files, encoder, root and root / folders.TOKENIZER
    )
    tokenizer = tokenizers.read(
      source, vocabulary=encoder.config.vocab_size, where=encoder.path
    )
    name = f'{encoder.fingerprint()} None'
    text = load_lib.text_hash(tokenizer, name)
  return Base(
    path,
    part.config,
    part.fingerprint(),
    autoencoder,
    text,
    image,
    part=part,
    pipeline=os.fspath(root) if root else None,
    noise_levels=_noise_levels(transformer, root),
  )


def _noise_levels(
  transformer: str | os.PathLike, root: pathlib.Path | None
) -> tuple[float, float] | None:
  """The noise levels that one of a folder's two transformers serves; None of
  one that serves all, or of a file from elsewhere."""
  transformer = pathlib.Path(transformer)
  if root is None or transformer.parent != root:
    return None
  boundary = folders.read_boundary(root)
  if boundary is None:
    return None
  second = transformer.name == folders.SECOND
  return (0.0, boundary) if second else (boundary, 1.0)


def _own(path: str, folder: str) -> Base:
  experiment = checkpoint.read_experiment(folder)
  if experiment.stage != 'diffusion':
    raise ValueError(
      f'{path} holds stage {experiment.stage!r}: expected a text-to-video '
      "model, stage 'diffusion'"
    )
  trained, _ = load_lib.find_autoencoder(experiment, beside=folder)
  nets = networks.networks(experiment, autoencoder=trained)
  if nets.lora.rank:
    raise ValueError(
      f'{path} holds LoRA weights alone: expected complete weights; merge them '
      f'with spacetime export --checkpoint={path} --lora=merged --out=DIR'
    )
  fingerprint = checkpoint.weights_hash(folder)
  tokenizer = checkpoint.read_tokenizer(folder)
  levels = experiment.flow.bounds if experiment.flow else (0.0, 1.0)
  return Base(
    path,
    nets.dit.config,
    fingerprint,
    fingerprint_of_autoencoder(experiment, beside=folder),
    load_lib.text_hash(Tokenizer.from_bytes(tokenizer), fingerprint),
    fingerprint if nets.image is not None else '',
    folder=folder,
    trained_text=nets.text_kind == 'trained',
    tokenizer=tokenizer,
    noise_levels=None if levels == (0.0, 1.0) else levels,
  )
