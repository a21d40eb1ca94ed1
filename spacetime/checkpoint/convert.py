"""Converts published folders to weights folders and back.

Tensors are converted one at a time: host memory holds one parameter.
"""

import os
import pathlib
import shutil
import warnings

import numpy as np
import tqdm

from spacetime import SettingError, SettingWarning, checkpoint
from spacetime.checkpoint import paths
from spacetime.checkpoint.interop import (
  clip,
  folders,
  layouts,
  network_files,
  networks,
  parameters,
  sections,
  tensor_files,
  tokenizers,
)
from spacetime.checkpoint.locate import Located, locate
from spacetime.config import networks as networks_lib
from spacetime.config import parse
from spacetime.media import files

TRANSFORMERS = ('transformer', folders.SECOND)
TOKENIZER_CONFIG = {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0}
AUTOENCODER = 'autoencoder'  # folder and root of the autoencoder


def convert(
  source: str | os.PathLike | None,
  target: str | os.PathLike,
  *,
  dtype: np.dtype | None = None,
  transformer: str | None = None,
  variant: str | None = None,
  files: network_files.Files = network_files.NO_FILES,
  shard_bytes: int = tensor_files.LIMIT,
) -> None:
  """Converts a published folder to a weights folder, or back.

  Args:
    source: a folder in diffusers' format, the file of a published transformer,
      or a weights folder; None if there are files of all networks.
    target: the folder to create.
    dtype: dtype of the transformer and the text encoder; None keeps theirs. The
      autoencoder, and parameters that compute in float32, keep theirs.
    transformer: one of two transformers of a published folder.
    variant: variant of a published folder's files, such as 'bf16'.
    files: files of published networks, which replace those of the source.
    shard_bytes: size of the largest file of a published folder.

  Raises:
    SettingError: a source of another kind, or a size of files below 1.
    ValueError: an existing target, or a model that cannot be converted.
  """
  if shard_bytes < 1:
    raise SettingError('shard_gb', shard_bytes / 1e9, 'more than 0')
  located = locate(os.fspath(source)) if source else None
  alone = located is not None and located.kind == 'transformer'
  if located is None or alone or located.is_published:
    size = None if shard_bytes == tensor_files.LIMIT else shard_bytes / 1e9
    _warn_of_unused('a weights folder has one file', shard_gb=size)
    if located is None or (alone and not located.pipeline):
      _warn_of_unused('`source` is no folder of a pipeline', variant=variant)
    pipeline = _open(located, transformer, variant, files)
    to_weights(pipeline, target, dtype=dtype)
    return
  _warn_of_unused(
    f'`source` is no folder with {network_files.INDEX}',
    transformer=transformer,
    variant=variant,
  )
  if files:
    raise SettingError(
      'source', os.fspath(source), 'a published folder beside files'
    )
  if located.kind not in ('weights', 'bundled'):
    raise SettingError(
      'source',
      os.fspath(source),
      f'a folder with {network_files.INDEX}, as diffusers writes it, or with '
      f'{checkpoint.WEIGHTS}, as spacetime export writes it',
    )
  to_published(located.folder, target, dtype=dtype, limit=shard_bytes)


def _open(
  located: Located | None,
  transformer: str | None,
  variant: str | None,
  files: network_files.Files,
) -> folders.Pipeline:
  """Opens a published folder, a transformer with files, or files alone."""
  folder = located and located.folder
  if located is not None and located.kind == 'transformer':
    folder = located.pipeline
    files = network_files.with_transformer(
      files, located.folder, transformer=transformer
    )
  return folders.open_pipeline(
    folder, transformer=transformer, variant=variant, files=files
  )


def _warn_of_unused(reason: str, **settings) -> None:
  """Warns of the settings that are not None."""
  for name, value in settings.items():
    if value is not None:
      warnings.warn(
        SettingWarning(name, value, f'no effect, since {reason}'), stacklevel=3
      )


def to_weights(pipeline: folders.Pipeline, target, *, dtype=None) -> None:
  """Converts an opened pipeline to a weights folder.

  Raises:
    SettingError: a pipeline with two transformers.
    ValueError: an existing target, a pipeline that this package does not
      support, or a tokenizer of another model.
  """
  if pipeline.transformer_2:
    raise SettingError(
      'transformer',
      None,
      "'transformer' or 'transformer_2', since "
      f'{pipeline.folder} has two, one for each range of noise levels',
    )
  config = sections.from_pipeline(pipeline, dtype=dtype)
  autoencoder = {'stage': 'autoencoder', 'autoencoder': config['autoencoder']}
  config['autoencoder'] = {'kind': 'weights', 'weights': AUTOENCODER}
  networks_lib.networks(
    parse.experiment(config),
    autoencoder=parse.experiment(autoencoder).autoencoder,
  )
  tokenizer = tokenizers.read(
    pipeline.tokenizer,
    vocabulary=config['text']['vocab_size'],
    where=pipeline.text_encoder.path,
  )
  parts = pipeline.parts
  size = sum(part.size for part in parts.values())
  with paths.new_folder(target) as folder, _bar(size) as bar:
    inside = folder / AUTOENCODER
    inside.mkdir()
    own = {root: part for root, part in parts.items() if root != AUTOENCODER}
    _write_weights(folder, own, dtype, bar)
    _write_weights(inside, {AUTOENCODER: parts[AUTOENCODER]}, dtype, bar)
    tensor_files.write_json(folder / checkpoint.CONFIG, config)
    tensor_files.write_json(inside / checkpoint.CONFIG, autoencoder)
    _copy_tokenizer(pipeline, tokenizer, folder / folders.TOKENIZER)
    (folder / checkpoint.TOKENIZER).write_bytes(tokenizer.serialized)


def _copy_tokenizer(pipeline, tokenizer, folder: pathlib.Path) -> None:
  source = pipeline.tokenizer
  if not isinstance(source, bytes) and source.is_dir():
    shutil.copytree(source, folder)
    return
  folder.mkdir()
  (folder / tokenizers.MODELS[0]).write_bytes(tokenizer.serialized)
  tensor_files.write_json(folder / 'tokenizer_config.json', TOKENIZER_CONFIG)


def _write_weights(folder, parts, dtype, bar) -> None:
  described, by_name = {}, {}
  for root, part in parts.items():
    for path, parameter in part.parameters.items():
      name = f'{root}/{path.replace(".", "/")}'
      kind = parameters.target_dtype(root, path, parameter.dtype, dtype)
      described[name], by_name[name] = (parameter.shape, kind), parameter
  file = tensor_files.File(folder / checkpoint.WEIGHTS, described)
  for name, parameter in by_name.items():
    file.put(name, parameter.read(dtype=described[name][1]))
    bar.update(sum(tensor.size for tensor in parameter.tensors))
  file.close()


def to_published(
  source, target, *, dtype=None, limit: int = tensor_files.LIMIT
) -> None:
  """Converts a weights folder to a folder in diffusers' format.

  Raises:
    ValueError: an existing target, or a model without published code.
  """
  source = files.mirror(source)
  experiment = checkpoint.read_experiment(source)
  if experiment.stage != 'diffusion':
    raise ValueError(
      f'{source} holds stage {experiment.stage!r}: expected a text-to-video '
      "model, stage 'diffusion'"
    )
  inside = pathlib.Path(source / (experiment.autoencoder.weights or '-'))
  if not (inside / checkpoint.WEIGHTS).is_file():
    raise ValueError(
      f'{source}: autoencoder.kind={experiment.autoencoder.kind!r}: '
      'expected the weights of a Wan autoencoder beside it, which the '
      'published pipeline needs'
    )
  trained = checkpoint.read_experiment(inside).autoencoder
  nets = networks_lib.networks(experiment, autoencoder=trained)
  index, scheduler = sections.to_index(
    experiment.values, residual=nets.autoencoder.config.is_residual
  )
  params = _trees(source / checkpoint.WEIGHTS) | _trees(
    inside / checkpoint.WEIGHTS
  )
  parts = {
    'transformer': nets.dit.config,
    'text_encoder': nets.text.config,
    'vae': nets.autoencoder.config,
  }
  if nets.image is not None:
    parts['image_encoder'] = nets.image.config
  size = sum(leaf.size for _, leaf in layouts.leaves(params))
  with paths.new_folder(target) as folder, _bar(size) as bar:
    for kind, sizes in parts.items():
      parameters.write(
        folder / kind,
        sizes,
        params[networks.ROOTS[kind]],
        dtype=dtype,
        limit=limit,
        report=bar.update,
      )
    tensor_files.write_json(folder / network_files.INDEX, index)
    (folder / folders.SCHEDULER).parent.mkdir()
    tensor_files.write_json(folder / folders.SCHEDULER, scheduler)
    _write_tokenizer(source, folder / folders.TOKENIZER)
    if nets.image is not None:
      (folder / 'image_processor').mkdir()
      tensor_files.write_json(
        folder / 'image_processor/preprocessor_config.json',
        clip.processor(nets.image.config),
      )


def _write_tokenizer(source: pathlib.Path, folder: pathlib.Path) -> None:
  if (source / folders.TOKENIZER).is_dir():
    shutil.copytree(source / folders.TOKENIZER, folder)
    return
  folder.mkdir()
  (folder / tokenizers.MODELS[0]).write_bytes(checkpoint.read_tokenizer(source))
  tensor_files.write_json(folder / 'tokenizer_config.json', TOKENIZER_CONFIG)


def _trees(path: pathlib.Path) -> dict:
  """The tensors of a weights file as parameter trees by root."""
  trees = {}
  for name, tensor in tensor_files.open_file(path).items():
    layouts.put(trees, name.split('/'), tensor)
  return trees


def _bar(size: int) -> tqdm.tqdm:
  return tqdm.tqdm(total=size, unit='B', unit_scale=True, desc='convert')
