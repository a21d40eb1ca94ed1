"""The weights that a run starts from: published ones, or a model of our own.

A published model is a folder as diffusers writes it, or one of the transformers
in it (FOLDER/transformer_2), or a transformer's folder or file by itself.
"""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp

from spacetime import checkpoint
from spacetime.checkpoint import load as load_lib
from spacetime.checkpoint.interop import folders, parameters, tokenizers
from spacetime.checkpoint.locate import locate
from spacetime.config import networks
from spacetime.config.experiment import Experiment
from spacetime.data.tokenizer import Tokenizer
from spacetime.models.transformer import dit

# Keys of the config that hold what the transformer's own section does not.
KEYS = {'channels': 'autoencoder.z_dim', 'text_width': 'text.d_model'}


@dataclasses.dataclass(frozen=True)
class Base:
  """Opened and checked; no array has been read.

  Attributes:
    path: as given.
    model: sizes of its transformer.
    fingerprint: of its transformer, or of all of our own model.
    autoencoder: fingerprint of its autoencoder; '' where it has none.
    text: fingerprint of its text encoder; '' where it has none.
    part: the published transformer; None of our own.
    folder: of our own model; '' of a published one.
    trained_text: whether our own has a text encoder that was trained with it.
    tokenizer: of our own.
  """

  path: str
  model: dit.DiTConfig
  fingerprint: str
  autoencoder: str = ''
  text: str = ''
  part: folders.Part | None = None
  folder: str = ''
  trained_text: bool = False
  tokenizer: bytes | None = None

  def source(self) -> dict[str, str]:
    """What a run remembers of it."""
    return {
      'path': os.fspath(checkpoint.absolute(self.folder or self.path)),
      'fingerprint': self.fingerprint,
      'autoencoder': self.autoencoder,
      'text': self.text,
    }

  def load(self, nets: networks.Networks, mesh, *, dtype=jnp.float32) -> dict:
    """Its parameters on the mesh: {'dit'}, and 'text' if it was trained.

    Args:
      nets: of the run.
      mesh: where they go.
      dtype: of the transformer, of which what the published code computes in
        float32 stays as stored; a text encoder gets float32. None keeps all.
    """
    if self.part is not None:
      return {'dit': self.part.load(mesh, dtype=dtype)}
    shapes = load_lib.placed(nets.init, mesh, stored=self.folder)
    if not self.trained_text:
      shapes = {'dit': shapes['dit']}

    def kind(path, leaf):
      root, *names = [key.key for key in path]
      wanted = dtype if root == 'dit' else dtype and jnp.float32
      target = parameters.target_dtype(
        root, '.'.join(names), leaf.dtype, wanted
      )
      return jax.ShapeDtypeStruct(leaf.shape, target, sharding=leaf.sharding)

    shapes = jax.tree_util.tree_map_with_path(kind, shapes)
    return checkpoint.load_params(self.folder, shapes, tree='ema')


def open_base(path: str, nets: networks.Networks) -> Base:
  """Opens what --checkpoint names, and checks that it fits the networks.

  Raises:
    ValueError: no weights there, of another kind, or of other sizes.
  """
  found = _open(path)
  wanted = dataclasses.asdict(nets.dit.config)
  have = dataclasses.asdict(found.model)
  told = [
    f'{KEYS.get(key, f"model.{key}")}={wanted[key]!r}, there {have[key]!r}'
    for key in wanted
    if key not in ('dtype', 'remat') and wanted[key] != have[key]
  ]
  if told:
    raise ValueError(
      f'{path} has a transformer of other sizes than the config: '
      f'{"; ".join(told)}; take the experiment of that model, or change '
      '--checkpoint'
    )
  if found.part is None and nets.text_kind == 'trained':
    if not found.trained_text:
      raise ValueError(
        f"text.kind='trained': {path} has no text encoder: expected 'frozen'"
      )
  if found.part is not None and nets.text_kind == 'trained':
    raise ValueError(
      "text.kind='trained' with published weights: expected 'frozen', since "
      'their text encoder is not trained with the transformer'
    )
  return found


def fingerprint_of_autoencoder(experiment: Experiment, *, beside) -> str:
  """Names the autoencoder of an experiment; '' where its weights are elsewhere,
  as those of a published one."""
  section = experiment.autoencoder
  if section.kind == 'identity':
    return f'identity-{section.network.time}'
  if section.kind == 'weights':
    return checkpoint.weights_hash(
      locate(section.weights, beside=beside).folder
    )
  return ''


def _open(path: str) -> Base:
  place = pathlib.Path(path)
  if folders.is_pipeline(place) or folders.is_pipeline(place.parent):
    root = place if folders.is_pipeline(place) else place.parent
    if place == root and (root / 'transformer_2').is_dir():
      raise ValueError(
        f'{path} has two transformers: expected one; choose it with '
        f'--checkpoint={path}/transformer or --checkpoint={path}/transformer_2'
      )
    return _published(path, root, place if place != root else None)
  if place.is_file() or _is_transformer(place):
    part = folders.open_part(place, 'transformer')
    return Base(path, part.config, part.fingerprint(), part=part)
  folder = locate(path).folder
  if folder != path and folders.is_pipeline(folder):  # one that was fetched
    return _open(folder)
  return _own(path, folder)


def _is_transformer(folder: pathlib.Path) -> bool:
  """Whether it holds a published transformer by itself."""
  if not folder.is_dir() or (folder / checkpoint.WEIGHTS).exists():
    return False
  return bool([*folder.glob('*.safetensors'), *folder.glob('*.index.json')])


def _published(path, root: pathlib.Path, place: pathlib.Path | None) -> Base:
  part = folders.open_part(place or root / 'transformer', 'transformer')
  autoencoder = text = ''
  # Neither is needed where its outputs are cached: a folder may lack them.
  if (root / 'vae').is_dir():
    autoencoder = folders.open_part(root / 'vae', 'vae').fingerprint()
  if (root / 'text_encoder').is_dir():
    encoder = folders.open_part(root / 'text_encoder', 'text_encoder')
    tokenizer = tokenizers.read(
      root / folders.TOKENIZER, vocabulary=encoder.config.vocab_size
    )
    name = f'{encoder.fingerprint()} None'
    text = load_lib.text_hash(tokenizer, name)
  return Base(
    path, part.config, part.fingerprint(), autoencoder, text, part=part
  )


def _own(path: str, folder: str) -> Base:
  experiment = checkpoint.read_experiment(folder)
  if experiment.stage != 'diffusion':
    raise ValueError(
      f'{path} holds stage {experiment.stage!r}: expected a text-to-video '
      "model, stage 'diffusion'; change --checkpoint"
    )
  trained, _ = load_lib.find_autoencoder(experiment, beside=folder)
  nets = networks.networks(experiment, autoencoder=trained)
  if nets.lora.rank:
    raise ValueError(
      f'{path} holds low-rank pairs alone: expected whole weights; merge them '
      f'with python -m spacetime export --checkpoint={path} --lora=merged '
      '--out=DIR, and change --checkpoint'
    )
  fingerprint = checkpoint.weights_hash(folder)
  tokenizer = checkpoint.read_tokenizer(folder)
  return Base(
    path,
    nets.dit.config,
    fingerprint,
    fingerprint_of_autoencoder(experiment, beside=folder),
    load_lib.text_hash(Tokenizer.from_bytes(tokenizer), fingerprint),
    folder=folder,
    trained_text=nets.text_kind == 'trained',
    tokenizer=tokenizer,
  )
