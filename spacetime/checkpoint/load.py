"""Opens a trained model: its experiment, networks and parameters."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping

import jax

from spacetime import checkpoint, sharding
from spacetime.checkpoint.interop import (
  folders,
  lora,
  sections,
  tensor_files,
  tokenizers,
)
from spacetime.checkpoint.locate import locate
from spacetime.config import networks as networks_lib
from spacetime.config import parse
from spacetime.config.experiment import Experiment
from spacetime.config.sections import AutoencoderSection
from spacetime.data import tokenizer as tokenizer_lib


@dataclasses.dataclass(frozen=True)
class Model:
  """A text-to-video model, checked, whose parameters are read on demand.

  Attributes:
    experiment: config of its training.
    networks: networks, without parameters.
    tokenizer: tokenizer of prompts.
    weights_hash: fingerprint of the parameters.
    text_hash: fingerprint of the tokenizer and the text encoder.
    readers: functions that read the parameters of a root: 'text', 'dit',
      'autoencoder' if that has any, and 'dit_2', the second of two
      transformers. Those of a run are the average (EMA) of training.
    text_stamp: size and time of the files of a published text encoder.
  """

  experiment: Experiment
  networks: networks_lib.Networks
  tokenizer: tokenizer_lib.Tokenizer
  weights_hash: str
  text_hash: str
  readers: Mapping[str, Callable[[], dict]]
  text_stamp: str = ''

  def read(self, root: str) -> dict:
    """Reads the parameters of a root, {} if it has none.

    Each call reads them again: the caller may free them.
    """
    return self.readers[root]() if root in self.readers else {}

  def with_lora(
    self, path: str | os.PathLike, *, root: str = 'dit', strength: float = 1.0
  ) -> 'Model':
    """Adds a LoRA file, merged whenever the transformer is read.

    Args:
      path: a safetensors file, of any dialect.
      root: 'dit', or 'dit_2' for the second of two transformers.
      strength: factor of the LoRA weights.

    Raises:
      ValueError: no such file, or weights for another base model.
    """
    adapter = lora.read(path, self.networks.dit.config, root=root)
    read = self.readers[root]

    def merged():
      return adapter.merge(read(), strength=strength)

    with open(path, 'rb') as file:
      name = hashlib.file_digest(file, 'sha256').hexdigest()[:16]
    return dataclasses.replace(
      self,
      weights_hash=f'{self.weights_hash}+{strength}*{name}',
      readers=dict(self.readers) | {root: merged},
    )


def open_model(path: str, *, mesh: jax.sharding.Mesh) -> Model:
  """Opens a text-to-video model by path or name; see locate.

  Raises:
    ValueError: no model, an incomplete one, or not a text-to-video model.
  """
  located = locate(path)
  folder = located.folder
  if located.is_published:
    return open_published(folder, mesh=mesh)
  if located.kind == 'transformer':
    raise ValueError(f'{path} is a transformer alone: expected a whole model')
  experiment = checkpoint.read_experiment(folder)
  if experiment.stage != 'diffusion':
    raise ValueError(
      f'{path} holds stage {experiment.stage!r}: expected a text-to-video '
      "model, stage 'diffusion'"
    )
  experiment = with_compute_dtype(experiment, mesh)
  trained, trained_folder = find_autoencoder(experiment, beside=folder)
  networks = networks_lib.networks(experiment, autoencoder=trained)
  if networks.lora.rank or networks.text_kind == 'frozen':
    more = ' --lora=merged' if networks.lora.rank else ''
    raise ValueError(
      f'{path} holds the trained weights alone, without those that it started '
      'from: make a complete folder of it with spacetime export --checkpoint='
      f'{path}{more} --out=DIR'
    )
  tokenizer = tokenizer_lib.Tokenizer.from_bytes(
    checkpoint.read_tokenizer(folder)
  )
  shapes = sharded_shapes(networks.init, mesh, stored=folder)
  checkpoint.check_params(folder, shapes)
  readers = {
    root: functools.partial(_read, folder, root, shapes[root])
    for root in ('text', 'dit')
  }
  if trained:
    readers['autoencoder'] = functools.partial(
      _read_own, trained, trained_folder, mesh
    )
  name = checkpoint.weights_hash(folder)
  return Model(
    experiment, networks, tokenizer, name, text_hash(tokenizer, name), readers
  )


def with_compute_dtype(
  experiment: Experiment, mesh: jax.sharding.Mesh
) -> Experiment:
  """Sets the compute dtype to float32 on CPUs, where bfloat16 is slower.

  Published models keep their dtype, since float32 may not fit in memory.
  """
  if mesh.devices.flat[0].platform != 'cpu' or experiment.published:
    return experiment
  return parse.replace(experiment, {'model.dtype': 'float32'})


def open_published(
  folder: str | os.PathLike,
  *,
  mesh: jax.sharding.Mesh,
  dtype=None,
  transformer: str | None = None,
) -> Model:
  """Opens a folder in diffusers' format.

  Args:
    folder: the folder of model_index.json.
    mesh: mesh of the parameters.
    dtype: dtype of the transformers and the text encoder; None keeps theirs.
    transformer: 'transformer' or 'transformer_2' opens one of two alone.

  Raises:
    ValueError: see folders.open_pipeline; or a tokenizer of another model.
  """
  pipeline = folders.open_pipeline(folder, transformer=transformer)
  experiment = parse.experiment(sections.from_pipeline(pipeline, dtype=dtype))
  networks = networks_lib.networks(experiment)
  tokenizer = tokenizers.read(
    pipeline.tokenizer, vocabulary=networks.text.config.vocab_size
  )
  readers = {
    root: functools.partial(part.load, mesh, dtype=dtype)
    for root, part in pipeline.parts.items()
  }
  name = f'{pipeline.text_encoder.fingerprint()} {dtype}'
  return Model(
    experiment,
    networks,
    tokenizer,
    pipeline.fingerprint(),
    text_hash(tokenizer, name),
    readers,
    pipeline.text_encoder.stamp(),
  )


def text_hash(tokenizer: tokenizer_lib.Tokenizer, weights: str) -> str:
  """Fingerprint of a text encoder of these weights and its tokenizer."""
  return hashlib.sha256(weights.encode() + tokenizer.serialized).hexdigest()


def _read(folder, root: str, shapes) -> dict:
  return checkpoint.load_params(
    folder, {root: shapes}, tree='ema', partial=True
  )[root]


def _read_own(section, folder, mesh) -> dict:
  return load_own(section, folder, mesh=mesh)['autoencoder']


def find_autoencoder(
  experiment: Experiment, *, beside: str | os.PathLike
) -> tuple[AutoencoderSection | None, str]:
  """Finds the trained autoencoder that an experiment names.

  Returns:
    (its section, its folder), or (None, '') if the experiment names none.

  Raises:
    ValueError: another kind of model, or a run instead of a weights folder.
  """
  section = experiment.autoencoder
  if section.kind != 'weights':
    return None, ''
  folder = locate(section.weights, beside=beside).folder
  config = checkpoint.read_config(folder)
  if config.get('stage') != 'autoencoder':
    raise ValueError(
      f'autoencoder.weights: {folder} holds stage {config.get("stage")!r}: '
      'expected an autoencoder'
    )
  if not os.path.exists(os.path.join(folder, checkpoint.WEIGHTS)):
    raise ValueError(
      f'autoencoder.weights: {folder} is a run: make a weights folder of it '
      f'with spacetime export --checkpoint={folder} --out=DIR'
    )
  return checkpoint.read_experiment(folder).autoencoder, folder


def load_own(
  section: AutoencoderSection, folder, *, mesh: jax.sharding.Mesh
) -> dict:
  """Reads the parameters of an autoencoder's folder: {'autoencoder'}."""
  autoencoder = networks_lib.autoencoder(section)
  shapes = sharded_shapes(
    lambda key: {'autoencoder': autoencoder.init(key)}, mesh, stored=folder
  )
  return checkpoint.load_params(folder, shapes, tree='ema')


def sharded_shapes(
  init: Callable, mesh: jax.sharding.Mesh, *, stored: str | None = None
):
  """Shapes of init's parameters, with their shardings on the mesh.

  Args:
    init: key -> parameters.
    mesh: mesh of the parameters.
    stored: a folder whose dtypes they get, such as bfloat16 in the weights of a
      large model; None keeps those of init.
  """
  shapes = jax.eval_shape(init, jax.random.key(0))
  saved = checkpoint.stored(stored) if stored else {}

  def leaf(path, shape, leaf_sharding):
    name = sharding.path_name(path)
    dtype = tensor_files.DTYPES.get(saved[name][1]) if name in saved else None
    return jax.ShapeDtypeStruct(
      shape.shape, dtype or shape.dtype, sharding=leaf_sharding
    )

  return jax.tree_util.tree_map_with_path(
    leaf, shapes, sharding.param_shardings(shapes, mesh)
  )
