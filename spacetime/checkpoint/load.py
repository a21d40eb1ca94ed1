"""Opens a trained model: its experiment, networks and parameters."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping

import jax
from absl import logging

from spacetime import SettingError, checkpoint, sharding
from spacetime.checkpoint import mismatch, shape_cache
from spacetime.checkpoint.interop import (
  folders,
  lora,
  lora_apply,
  network_files,
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

# Relative error of merged LoRA weights above which a warning is logged.
MERGE_ERROR = 0.01


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
      'autoencoder' and 'image' if there are any, and 'dit_2', the second of two
      transformers. Those of a run are the average (EMA) of training.
    text_stamp: size and time of the files of a published text encoder.
    autoencoder_hash: fingerprint of a published autoencoder.
    image_hash: fingerprint of the image encoder; '' if there is none.
    adapters: LoRA weights of each transformer with their strengths, by root.
    shapes: functions that return the shapes of what the readers read, with
      their shardings, by root.
    own_autoencoder: settings of a trained autoencoder that the experiment
      names; None if it names none.
  """

  experiment: Experiment
  networks: networks_lib.Networks
  tokenizer: tokenizer_lib.Tokenizer
  weights_hash: str
  text_hash: str
  readers: Mapping[str, Callable[[], dict]]
  text_stamp: str = ''
  autoencoder_hash: str = ''
  image_hash: str = ''
  adapters: Mapping[str, tuple[tuple[lora_apply.Adapter, float], ...]] = (
    dataclasses.field(default_factory=dict)
  )
  shapes: Mapping[str, Callable[[], dict]] = dataclasses.field(
    default_factory=dict
  )
  own_autoencoder: AutoencoderSection | None = None

  @property
  def settings(self) -> str:
    """All settings that the networks are made from, as text."""
    return repr((self.experiment, self.own_autoencoder))

  def abstract(self, root: str) -> dict:
    """Shapes of the parameters of a root with their shardings, {} if it has
    none; no array is read. LoRA weights are not among them."""
    return self.shapes[root]() if root in self.shapes else {}

  def read(self, root: str) -> dict:
    """Reads the parameters of a root, {} if it has none.

    Each call reads them again: the caller may free them.
    """
    return self.readers[root]() if root in self.readers else {}

  def read_transformer(self, root: str) -> dict:
    """Reads a transformer with its LoRA weights: {'dit', 'lora'}.

    'lora' is missing where there are none beside the kernels; see lora_apply.
    """
    params = self.read(root)
    if root not in self.adapters:
      return {'dit': params}
    applied = lora_apply.apply(params, self.adapters[root])
    if applied.loss.relative_error > MERGE_ERROR:
      logging.warning(
        'LoRA weights of %s without low-rank factors, merged into 16 bits: %s; '
        'weights in float32 lose nothing',
        root,
        applied.loss,
      )
    return applied.tree

  def with_lora(
    self, path: str | os.PathLike, *, root: str = 'dit', strength: float = 1.0
  ) -> 'Model':
    """Adds LoRA weights after those that it has.

    Args:
      path: a file of any dialect, or a folder with one. With weights for both
        of two transformers, both get theirs.
      root: 'dit', or 'dit_2' for the second of two transformers.
      strength: factor of the LoRA weights.

    Raises:
      ValueError: no such file, or weights for another base model or another
        transformer.
    """
    file = lora.open_lora(path)
    roots = (root,)
    if file.has_both:
      roots = ('dit', 'dit_2')
      if root == 'dit_2':
        raise ValueError(
          f'{path} has weights for both transformers: expected it as `lora`'
        )
    elif file.roots == {'dit_2'} and 'dit_2' not in self.readers:
      raise ValueError(
        f'{path} has weights for the second of two transformers, and the model '
        'has one: expected weights for that'
      )
    elif file.roots == {'dit_2'} and root == 'dit':
      raise ValueError(
        f'{path} has weights for the second of two transformers: expected it '
        'as `lora_2`'
      )
    if any(name not in self.readers for name in roots):
      raise ValueError(
        f'{path} has weights for two transformers: expected those of one, as '
        'the model has'
      )
    adapters = dict(self.adapters)
    for name in roots:
      adapter = lora.read(file, self.networks.dit.config, root=name)
      if adapter.ignored:
        logging.warning(
          '%s: %d tensors for an image, which this model has no input for, are '
          'not used: %s',
          path,
          len(adapter.ignored),
          mismatch.listed(adapter.ignored, most=lora.MOST),
        )
      adapters[name] = (*adapters.get(name, ()), (adapter, strength))
    mark = '' if root == 'dit' else f'{root}:'
    return dataclasses.replace(
      self,
      weights_hash=f'{self.weights_hash}+{mark}{strength}*{file.fingerprint()}',
      adapters=adapters,
    )


def open_model(
  path: str | None,
  *,
  mesh: jax.sharding.Mesh,
  files: network_files.Files = network_files.NO_FILES,
  cache: str | os.PathLike | None = None,
) -> Model:
  """Opens a text-to-video model by path or name; see locate.

  Args:
    path: path or name of the model; a published transformer by itself is one of
      the files. None if there are files of all networks.
    mesh: mesh of the parameters.
    files: files of published networks, which replace those of the folder.
    cache: folder of cached shapes, see shape_cache; None keeps none.

  Raises:
    SettingError: files beside a model that is not published.
    ValueError: no model, or see open_weights and open_published.
  """
  if path is None:
    return open_published(None, mesh=mesh, files=files)
  located = locate(path)
  folder = located.folder
  if located.is_published:
    return open_published(folder, mesh=mesh, files=files)
  if located.kind == 'transformer':
    files = network_files.with_transformer(files, folder)
    return open_published(located.pipeline, mesh=mesh, files=files)
  if files:
    raise SettingError(
      'checkpoint',
      path,
      'a published folder or file beside files of its networks',
    )
  return open_weights(path, folder, mesh=mesh, cache=cache)


def open_weights(
  path: str,
  folder: str,
  *,
  mesh: jax.sharding.Mesh,
  cache: str | os.PathLike | None = None,
) -> Model:
  """Opens a run or a weights folder.

  Args:
    path: path or name of the model, for messages.
    folder: its folder.
    mesh: mesh of the parameters.
    cache: folder of cached shapes; None keeps none.

  Raises:
    ValueError: an incomplete model, or not a text-to-video model.
  """
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
  shapes = shape_cache.shapes(
    lambda key: networks.init(key) | networks.init_frozen(key),
    (experiment, trained),
    cache,
  )
  shapes = with_shardings(shapes, mesh, stored=folder)
  checkpoint.check_params(folder, shapes)
  readers = {
    root: functools.partial(_read, folder, root, shapes[root])
    for root in shapes
  }
  if trained:
    autoencoder = own_shapes(trained, trained_folder, mesh=mesh, cache=cache)
    shapes['autoencoder'] = autoencoder
    readers['autoencoder'] = functools.partial(
      _read, trained_folder, 'autoencoder', autoencoder
    )
  name = checkpoint.weights_hash(folder)
  return Model(
    experiment,
    networks,
    tokenizer,
    name,
    text_hash(tokenizer, name),
    readers,
    image_hash=name if 'image' in shapes else '',
    shapes={root: functools.partial(dict, shapes[root]) for root in readers},
    own_autoencoder=trained,
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
  folder: str | os.PathLike | None,
  *,
  mesh: jax.sharding.Mesh,
  dtype=None,
  transformer: str | None = None,
  files: network_files.Files = network_files.NO_FILES,
) -> Model:
  """Opens a folder in diffusers' format.

  Args:
    folder: the folder of model_index.json; None if there are files of all
      networks.
    mesh: mesh of the parameters.
    dtype: dtype of the transformers and the text encoder; None keeps theirs.
    transformer: 'transformer' or 'transformer_2' opens one of two alone.
    files: files that replace networks of the folder.

  Raises:
    ValueError: see folders.open_pipeline; or a tokenizer of another model.
  """
  pipeline = folders.open_pipeline(folder, transformer=transformer, files=files)
  experiment = parse.experiment(sections.from_pipeline(pipeline, dtype=dtype))
  networks = networks_lib.networks(experiment)
  tokenizer = tokenizers.read(
    pipeline.tokenizer,
    vocabulary=networks.text.config.vocab_size,
    where=pipeline.text_encoder.path,
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
    pipeline.vae.fingerprint(),
    pipeline.image_encoder.fingerprint() if pipeline.image_encoder else '',
    shapes={
      root: functools.partial(part.abstract, mesh, dtype=dtype)
      for root, part in pipeline.parts.items()
    },
  )


def text_hash(tokenizer: tokenizer_lib.Tokenizer, weights: str) -> str:
  """Fingerprint of a text encoder of these weights and its tokenizer."""
  return hashlib.sha256(weights.encode() + tokenizer.serialized).hexdigest()


def _read(folder, root: str, shapes) -> dict:
  return checkpoint.load_params(
    folder, {root: shapes}, tree='ema', partial=True
  )[root]


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
  if not (checkpoint.absolute(folder) / checkpoint.WEIGHTS).exists():
    raise ValueError(
      f'autoencoder.weights: {folder} is a run: make a weights folder of it '
      f'with spacetime export --checkpoint={folder} --out=DIR'
    )
  return checkpoint.read_experiment(folder).autoencoder, folder


def load_own(
  section: AutoencoderSection, folder, *, mesh: jax.sharding.Mesh
) -> dict:
  """Reads the parameters of an autoencoder's folder: {'autoencoder'}."""
  shapes = {'autoencoder': own_shapes(section, folder, mesh=mesh)}
  return checkpoint.load_params(folder, shapes, tree='ema')


def own_shapes(
  section: AutoencoderSection,
  folder,
  *,
  mesh: jax.sharding.Mesh,
  cache: str | os.PathLike | None = None,
) -> dict:
  """Shapes of the parameters of an autoencoder's folder; see shape_cache."""
  autoencoder = networks_lib.autoencoder(section)
  shapes = shape_cache.shapes(
    lambda key: {'autoencoder': autoencoder.init(key)}, section, cache
  )
  return with_shardings(shapes, mesh, stored=folder)['autoencoder']


def sharded_shapes(
  init: Callable, mesh: jax.sharding.Mesh, *, stored: str | None = None
):
  """Shapes of the parameters of `init(key)`; see with_shardings."""
  return with_shardings(shape_cache.shapes(init, None), mesh, stored=stored)


def with_shardings(
  shapes, mesh: jax.sharding.Mesh, *, stored: str | None = None
):
  """Shapes of parameters with their shardings on the mesh.

  Args:
    shapes: the shapes.
    mesh: mesh of the parameters.
    stored: a folder whose dtypes they get, such as bfloat16 in the weights of a
      large model; None keeps those of init.
  """
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
