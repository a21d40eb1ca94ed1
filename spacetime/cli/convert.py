"""Turns a published folder of Wan into a weights folder, and back.

  python -m spacetime convert --source=DIR --target=DIR [--dtype=bfloat16]

--source decides the direction: a folder with model_index.json, as diffusers
writes it, becomes a weights folder of spacetime; a weights folder becomes one
that diffusers loads. Tensors pass one at a time.
"""

import pathlib
import shutil

import jax.numpy as jnp
import tqdm
from absl import flags

from spacetime import checkpoint
from spacetime.checkpoint import paths
from spacetime.checkpoint.interop import (
  folders,
  layouts,
  networks,
  parameters,
  sections,
  tensor_files,
  tokenizers,
)
from spacetime.config import networks as networks_lib
from spacetime.config import parse

_SOURCE = flags.DEFINE_string('source', None, 'What to read: a folder.')
_TARGET = flags.DEFINE_string('target', None, 'The folder to make.')
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['float32', 'bfloat16', 'float16'],
  'Of the transformer and the text encoder; as they are if not set. The '
  'autoencoder, and what is computed in float32, always stay as they are.',
)
_TRANSFORMER = flags.DEFINE_string(
  'transformer',
  None,
  'Which of two transformers of --source, transformer or transformer_2.',
)
_VARIANT = flags.DEFINE_string(
  'variant', None, 'Of the files of --source that bear it, such as bf16.'
)
_SHARD = flags.DEFINE_float('shard_gb', 5.0, 'Largest file, in 10^9 bytes.')

INSIDE = 'autoencoder'


def main() -> None:
  """Flags -> the other kind of folder."""
  if not _SOURCE.value or not _TARGET.value:
    raise ValueError('--source and --target: expected both; see --help')
  if _SHARD.value <= 0:
    raise ValueError(f'--shard_gb={_SHARD.value}: expected more than 0')
  source = pathlib.Path(_SOURCE.value)
  dtype = _DTYPE.value and jnp.dtype(_DTYPE.value)
  if folders.is_pipeline(source):
    pipeline = folders.open_pipeline(
      source, transformer=_TRANSFORMER.value, variant=_VARIANT.value
    )
    to_weights(pipeline, _TARGET.value, dtype=dtype)
  elif (source / checkpoint.WEIGHTS).is_file():
    to_published(
      source, _TARGET.value, dtype=dtype, limit=int(_SHARD.value * 1e9)
    )
  else:
    raise ValueError(
      f'--source={source}: expected {folders.INDEX}, as diffusers writes it, '
      f'or {checkpoint.WEIGHTS}, as spacetime export writes it from a work '
      'directory'
    )
  print(f'{_TARGET.value}: written')


def to_weights(pipeline: folders.Pipeline, target, *, dtype=None) -> None:
  """Writes a weights folder of an opened pipeline.

  Raises:
    ValueError: the target is there, the pipeline cannot be a config or has two
      transformers, or its tokenizer is of another model.
  """
  if pipeline.transformer_2:
    raise ValueError(
      f'{pipeline.folder} has two transformers, one for each range of levels: '
      'expected one; choose it with --transformer=transformer or '
      '--transformer=transformer_2'
    )
  config = sections.from_pipeline(pipeline, dtype=dtype)
  codec = {'stage': 'autoencoder', 'autoencoder': config['autoencoder']}
  config['autoencoder'] = {'kind': 'weights', 'weights': INSIDE}
  networks_lib.networks(
    parse.experiment(config),
    autoencoder=parse.experiment(codec).autoencoder,
  )
  tokenizer = tokenizers.read(
    pipeline.tokenizer, vocabulary=config['text']['vocab_size']
  )
  parts = pipeline.parts
  size = sum(part.size for part in parts.values())
  with paths.new_folder(target) as folder, _bar(size) as bar:
    (folder / INSIDE).mkdir()
    _write_weights(folder, {r: parts[r] for r in ('dit', 'text')}, dtype, bar)
    _write_weights(folder / INSIDE, {INSIDE: parts[INSIDE]}, dtype, bar)
    tensor_files.write_json(folder / checkpoint.CONFIG, config)
    tensor_files.write_json(folder / INSIDE / checkpoint.CONFIG, codec)
    shutil.copytree(pipeline.tokenizer, folder / folders.TOKENIZER)
    (folder / checkpoint.TOKENIZER).write_bytes(tokenizer.serialized)


def _write_weights(folder, parts, dtype, bar) -> None:
  described, found = {}, {}
  for root, part in parts.items():
    for path, parameter in part.parameters.items():
      name = f'{root}/{path.replace(".", "/")}'
      kind = parameters.target_dtype(root, path, parameter.dtype, dtype)
      described[name], found[name] = (parameter.shape, kind), parameter
  file = tensor_files.File(folder / checkpoint.WEIGHTS, described)
  for name, parameter in found.items():
    file.put(name, parameter.read(dtype=described[name][1]))
    bar.update(sum(tensor.size for tensor in parameter.tensors))
  file.close()


def to_published(
  source, target, *, dtype=None, limit: int = tensor_files.LIMIT
) -> None:
  """Writes a folder that diffusers loads of a weights folder.

  Raises:
    ValueError: the target is there, or the published code has no such model.
  """
  source = pathlib.Path(source)
  experiment = checkpoint.read_experiment(source)
  if experiment.stage != 'diffusion':
    raise ValueError(
      f'{source} holds stage {experiment.stage!r}: expected a text-to-video '
      "model, stage 'diffusion'; change --source"
    )
  inside = pathlib.Path(source / (experiment.autoencoder.weights or '-'))
  if not (inside / checkpoint.WEIGHTS).is_file():
    raise ValueError(
      f'{source}: autoencoder.kind={experiment.autoencoder.kind!r}: '
      'expected weights of a causal autoencoder beside it, since that is what '
      'the published pipeline has'
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
    tensor_files.write_json(folder / folders.INDEX, index)
    (folder / folders.SCHEDULER).parent.mkdir()
    tensor_files.write_json(folder / folders.SCHEDULER, scheduler)
    _write_tokenizer(source, folder / folders.TOKENIZER)


def _write_tokenizer(source: pathlib.Path, folder: pathlib.Path) -> None:
  if (source / folders.TOKENIZER).is_dir():
    shutil.copytree(source / folders.TOKENIZER, folder)
    return
  folder.mkdir()
  (folder / tokenizers.MODELS[0]).write_bytes(checkpoint.read_tokenizer(source))
  tensor_files.write_json(
    folder / 'tokenizer_config.json',
    {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0},
  )


def _trees(path: pathlib.Path) -> dict:
  """Trees of a weights file's tensors by their roots."""
  trees = {}
  for name, tensor in tensor_files.open_file(path).items():
    layouts.put(trees, name.split('/'), tensor)
  return trees


def _bar(size: int) -> tqdm.tqdm:
  return tqdm.tqdm(total=size, unit='B', unit_scale=True, desc='convert')
