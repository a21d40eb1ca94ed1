"""A tiny random folder in the published layout, written without torch."""

import dataclasses
import json
import pathlib

import numpy as np
import safetensors.numpy

from spacetime.checkpoint.interop import config_json, folders, networks
from spacetime.data import tokenizer
from spacetime.models import image_encoder, text_encoder
from spacetime.models.autoencoder import wan
from spacetime.models.transformer import dit
from tests.helpers import seeded_weights

TRANSFORMER = dit.DiTConfig(
  channels=3,
  patch=(1, 2, 2),
  width=24,
  heads=2,
  layers=2,
  mlp=40,
  text_width=12,
  frequencies=16,
)
VAE = wan.WanAutoencoderConfig(
  base_dim=4,
  z_dim=3,
  dim_mult=(1, 2, 2),
  num_res_blocks=1,
  temporal_downsample=(False, True),
  latents_mean=(0.5, -0.25, 1.0),
  latents_std=(2.0, 0.5, 1.5),
)
VAE22 = dataclasses.replace(
  VAE, decoder_base_dim=6, is_residual=True, patch_size=2
)
TEXT = text_encoder.TextConfig(
  vocab_size=320, d_model=12, d_kv=5, num_heads=2, d_ff=20, num_layers=3
)
CAPTIONS = ['a red 3 moves left', 'two blue digits, still', 'snow over a lake']
STEMS = {
  'transformer': 'diffusion_pytorch_model',
  'vae': 'diffusion_pytorch_model',
  'text_encoder': 'model',
  'image_encoder': 'model',
}


def drawn(config, dtype=np.float32) -> dict[str, np.ndarray]:
  """Seeded tensors of a network by their published names."""
  shapes = networks.of(config).published_shapes()
  return {
    name: tensor.astype(dtype)
    for name, tensor in seeded_weights.weights(shapes).items()
  }


def write_part(folder, config, *, dtype=np.float32, tensors=None, mark=''):
  """Writes config.json and one file; returns the file."""
  folder.mkdir(parents=True, exist_ok=True)
  kind = networks.of(config).kind
  values = networks.FORMATS[kind].write_config(config)
  values |= {'_diffusers_version': '0.42.1'}
  (folder / 'config.json').write_text(json.dumps(values))
  tensors = drawn(config, dtype) if tensors is None else tensors
  path = folder / f'{STEMS[kind]}{mark}.safetensors'
  safetensors.numpy.save_file(tensors, path, metadata={'format': 'pt'})
  return path


def write_shards(folder, config, *, count=2, stem=None) -> pathlib.Path:
  """As write_part, in shards with their index; returns the index."""
  path = write_part(folder, config)
  tensors = safetensors.numpy.load_file(path)
  path.unlink()
  stem = stem or path.stem
  files = {}
  for i in range(count):
    file = f'{stem}-{i + 1:05d}-of-{count:05d}.safetensors'
    part = {name: tensors[name] for name in sorted(tensors)[i::count]}
    safetensors.numpy.save_file(part, folder / file, metadata={'format': 'pt'})
    files |= dict.fromkeys(part, file)
  total = sum(tensor.nbytes for tensor in tensors.values())
  index = folder / f'{stem}.safetensors.index.json'
  index.write_text(
    json.dumps({'metadata': {'total_size': total}, 'weight_map': files})
  )
  return index


PIPELINES = {
  'frames': 'WanPipeline',
  'channels': 'WanImageToVideoPipeline',
  'control': 'WanVACEPipeline',
}
# What image-to-video models see beside the latents: a mask and latents.
COND_CHANNELS = 2 + VAE.z_dim
IMAGE = image_encoder.ImageConfig(
  hidden_size=8,
  intermediate_size=12,
  num_hidden_layers=2,
  num_attention_heads=2,
  image_size=8,
  patch_size=4,
)


def write(
  folder: pathlib.Path, *, vae=VAE, dtype=np.float32, image=None, **variant
) -> pathlib.Path:
  """Writes a complete pipeline's folder and returns it.

  Args:
    folder: the folder.
    vae: sizes of the autoencoder.
    dtype: dtype of the transformer and the text encoder.
    image: sizes of an image encoder.
    **variant: sizes that the transformer has beside those of text to video.
  """
  transformer = dataclasses.replace(TRANSFORMER, **variant)
  write_part(folder / 'transformer', transformer, dtype=dtype)
  if image is not None:
    write_part(folder / 'image_encoder', image)
  write_part(folder / 'vae', vae)
  write_part(folder / 'text_encoder', TEXT, dtype=dtype)
  index = {
    '_class_name': PIPELINES[transformer.sees],
    '_diffusers_version': '0.42.1',
    'boundary_ratio': None,
    'expand_timesteps': vae.is_residual,
    'scheduler': ['diffusers', 'UniPCMultistepScheduler'],
    'text_encoder': ['transformers', config_json.CLASSES['text_encoder']],
    'tokenizer': ['transformers', 'T5TokenizerFast'],
    'transformer': ['diffusers', config_json.CLASSES['transformer']],
    'transformer_2': [None, None],
    'vae': ['diffusers', config_json.CLASSES['vae']],
  }
  (folder / 'model_index.json').write_text(json.dumps(index))
  (folder / 'scheduler').mkdir()
  (folder / 'scheduler/scheduler_config.json').write_text(
    json.dumps(folders.SCHEDULER_CONFIG | {'flow_shift': 5.0})
  )
  (folder / 'tokenizer').mkdir()
  pieces = tokenizer.train(CAPTIONS, vocab_size=310)
  (folder / 'tokenizer/spiece.model').write_bytes(pieces.serialized)
  (folder / 'tokenizer/tokenizer_config.json').write_text(
    json.dumps({'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0})
  )
  return folder


def change_index(folder: pathlib.Path, **changes) -> None:
  """Changes keys of model_index.json."""
  path = folder / 'model_index.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Every tensor of a network's folder, whatever its files."""
  tensors_by_name = {}
  for path in sorted(folder.glob('*.safetensors')):
    tensors_by_name |= safetensors.numpy.load_file(path)
  return tensors_by_name
