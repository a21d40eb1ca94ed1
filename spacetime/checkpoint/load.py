"""A trained model from its folder: what sampling and evaluation start from."""

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
  """Networks with their parameters.

  Attributes:
    experiment: config of its training.
    networks: functions.
    params: {'dit', 'text'}, the average (EMA) of training.
    frozen: {'autoencoder'}, or {} where that has no parameters.
    tokenizer: of prompts.
    weights_hash: names the parameters.
    text_hash: names tokenizer and parameters of the text encoder.
    text_stamp: names the files of a published one, as they stand on the disk.
  """

  experiment: Experiment
  networks: networks_lib.Networks
  params: dict
  frozen: dict
  tokenizer: tokenizer_lib.Tokenizer
  weights_hash: str
  text_hash: str = ''
  text_stamp: str = ''

  def read(self, root: str) -> dict:
    """The parameters of a root, {} if it has none."""
    return (self.params | self.frozen).get(root, {})


@dataclasses.dataclass(frozen=True)
class Opened:
  """A model that has been checked and of which no parameter has been read.

  Attributes:
    experiment, networks, tokenizer, weights_hash, text_hash: as of Model.
    readers: what reads the parameters of a root: 'text', 'dit', 'autoencoder'
      where that has any, and 'dit_2', the second of two transformers.
    text_stamp: as of Model.
  """

  experiment: Experiment
  networks: networks_lib.Networks
  tokenizer: tokenizer_lib.Tokenizer
  weights_hash: str
  text_hash: str
  readers: Mapping[str, Callable[[], dict]]
  text_stamp: str = ''

  def read(self, root: str) -> dict:
    """The parameters of a root, read anew: whoever has them can free them."""
    return self.readers[root]() if root in self.readers else {}

  def with_pairs(
    self, path: str | os.PathLike, *, root: str = 'dit', strength: float = 1.0
  ) -> 'Opened':
    """With a file of low-rank pairs, merged whenever a transformer is read.

    Args:
      path: a safetensors file, of any dialect.
      root: 'dit', or 'dit_2', the second of two.
      strength: what the pairs are multiplied by.

    Raises:
      ValueError: no such file, or pairs of another base.
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

  def load(self) -> Model:
    """All of it.

    Raises:
      ValueError: a model with two transformers, which are read one by one.
    """
    if 'dit_2' in self.readers:
      raise ValueError(
        'the model has two transformers, one for each range of levels: '
        'expected one; choose it with --transformer=transformer or '
        '--transformer=transformer_2'
      )
    trees = {root: read() for root, read in self.readers.items()}
    frozen = {r: trees.pop(r) for r in ('autoencoder',) if r in trees}
    return Model(
      self.experiment,
      self.networks,
      trees,
      frozen,
      self.tokenizer,
      self.weights_hash,
      self.text_hash,
      self.text_stamp,
    )


def load(path: str, *, mesh: jax.sharding.Mesh) -> Model:
  """As open_model, with all parameters read."""
  return open_model(path, mesh=mesh).load()


def open_model(path: str, *, mesh: jax.sharding.Mesh) -> Opened:
  """Opens a work directory, a weights folder, a folder as diffusers writes it,
  or a bundled model by name.

  Raises:
    ValueError: nothing there, half-written, or not a text-to-video model.
  """
  folder = locate(path).folder
  if folders.is_pipeline(folder):
    return open_published(folder, mesh=mesh)
  experiment = checkpoint.read_experiment(folder)
  if experiment.stage != 'diffusion':
    raise ValueError(
      f'{path} holds stage {experiment.stage!r}: expected a text-to-video '
      "model, stage 'diffusion'; change --checkpoint"
    )
  experiment = with_compute_dtype(experiment, mesh)
  trained, trained_folder = find_autoencoder(experiment, beside=folder)
  networks = networks_lib.networks(experiment, autoencoder=trained)
  if networks.lora.rank or networks.text_kind == 'frozen':
    more = ' --lora=merged' if networks.lora.rank else ''
    raise ValueError(
      f'{path} holds what was trained alone, not the weights that it started '
      'from: make a whole folder of it with python -m spacetime export '
      f'--checkpoint={path}{more} --out=DIR, and change --checkpoint'
    )
  tokenizer = tokenizer_lib.Tokenizer.from_bytes(
    checkpoint.read_tokenizer(folder)
  )
  shapes = placed(networks.init, mesh, stored=folder)
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
  return Opened(
    experiment, networks, tokenizer, name, text_hash(tokenizer, name), readers
  )


def with_compute_dtype(
  experiment: Experiment, mesh: jax.sharding.Mesh
) -> Experiment:
  """The experiment with the dtype that suits the devices: float32 on a CPU,
  where bfloat16 is several times slower. Published models keep theirs: some
  have no room for more."""
  if mesh.devices.flat[0].platform != 'cpu' or experiment.published:
    return experiment
  return parse.replace(experiment, {'model.dtype': 'float32'})


def load_published(
  folder: str | os.PathLike,
  *,
  mesh: jax.sharding.Mesh,
  dtype=None,
  transformer: str | None = None,
) -> Model:
  """As open_published, with all parameters read."""
  return open_published(
    folder, mesh=mesh, dtype=dtype, transformer=transformer
  ).load()


def open_published(
  folder: str | os.PathLike,
  *,
  mesh: jax.sharding.Mesh,
  dtype=None,
  transformer: str | None = None,
) -> Opened:
  """Opens a folder as diffusers writes it.

  Args:
    folder: that of model_index.json.
    mesh: where the parameters go.
    dtype: of the transformers and the text encoder; None keeps it as stored.
    transformer: which of two, 'transformer' or 'transformer_2', to open alone.

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
  return Opened(
    experiment,
    networks,
    tokenizer,
    pipeline.fingerprint(),
    text_hash(tokenizer, name),
    readers,
    pipeline.text_encoder.stamp(),
  )


def text_hash(tokenizer: tokenizer_lib.Tokenizer, weights: str) -> str:
  """Names a text encoder of these weights with its tokenizer."""
  return hashlib.sha256(weights.encode() + tokenizer.serialized).hexdigest()


def _read(folder, root: str, shapes) -> dict:
  return checkpoint.load_params(
    folder, {root: shapes}, tree='ema', whole=False
  )[root]


def _read_own(section, folder, mesh) -> dict:
  return load_own(section, folder, mesh=mesh)['autoencoder']


def find_autoencoder(
  experiment: Experiment, *, beside: str | os.PathLike
) -> tuple[AutoencoderSection | None, str]:
  """(section, folder) of the trained autoencoder that an experiment names, or
  (None, '') where it names none.

  Raises:
    ValueError: another model there, or a run in place of a weights folder.
  """
  section = experiment.autoencoder
  if section.kind != 'weights':
    return None, ''
  folder = locate(section.weights, beside=beside).folder
  config = checkpoint.read_config(folder)
  if config.get('stage') != 'autoencoder':
    raise ValueError(
      f'{folder} holds stage {config.get("stage")!r}: expected an autoencoder; '
      'change autoencoder.weights'
    )
  if not os.path.exists(os.path.join(folder, checkpoint.WEIGHTS)):
    raise ValueError(
      f'{folder} is a run: make a weights folder of it with python -m '
      f'spacetime export --checkpoint={folder} --out=DIR, and name that in '
      'autoencoder.weights'
    )
  return checkpoint.read_experiment(folder).autoencoder, folder


def load_autoencoder(
  experiment: Experiment,
  *,
  beside: str | os.PathLike,
  mesh: jax.sharding.Mesh,
) -> tuple[AutoencoderSection | None, dict]:
  """The trained autoencoder that an experiment names, if it names one.

  Returns:
    (its section, {'autoencoder': params}), or (None, {}).
  """
  section, folder = find_autoencoder(experiment, beside=beside)
  return section, load_own(section, folder, mesh=mesh) if section else {}


def load_own(
  section: AutoencoderSection, folder, *, mesh: jax.sharding.Mesh
) -> dict:
  """The parameters of an autoencoder's own folder: {'autoencoder'}."""
  autoencoder = networks_lib.autoencoder(section)
  shapes = placed(
    lambda key: {'autoencoder': autoencoder.init(key)}, mesh, stored=folder
  )
  return checkpoint.load_params(folder, shapes, tree='ema')


def placed(init, mesh: jax.sharding.Mesh, *, stored: str | None = None):
  """The shapes of init's parameters, with their shardings on the mesh.

  Args:
    init: key -> parameters.
    mesh: where they go.
    stored: a folder whose dtypes they have, such as bfloat16 in the weights of
      a large model; None keeps those of init.
  """
  shapes = jax.eval_shape(init, jax.random.key(0))
  found = checkpoint.stored(stored) if stored else {}

  def leaf(path, shape, place):
    name = sharding.path_name(path)
    dtype = tensor_files.DTYPES.get(found[name][1]) if name in found else None
    return jax.ShapeDtypeStruct(
      shape.shape, dtype or shape.dtype, sharding=place
    )

  return jax.tree_util.tree_map_with_path(
    leaf, shapes, sharding.param_shardings(shapes, mesh)
  )
