"""The published Wan autoencoders: names, layouts and config.json.

A row has a pattern of the published name, the name of the parameter and the
layout; the first row that matches is used. In the rest of a name, the index of
a list follows a dot there (`resnets.0`) and an underscore here (`resnets_0`).
"""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from spacetime.checkpoint.interop import config_json, layouts
from spacetime.models.autoencoder import wan

TABLE = (
  (r'(.*attentions\.\d+\.norm)\.gamma', r'\1.gamma', 'gain2'),
  (r'(.*)\.gamma', r'\1.gamma', 'gain3'),
  (r'(.*)\.resample\.1\.weight', r'\1.resample.kernel', 'conv2'),
  (r'(.*)\.resample\.1\.bias', r'\1.resample.bias', 'same'),
  (r'(.*\.(?:to_qkv|proj))\.weight', r'\1.kernel', 'point2'),
  (r'((?:post_)?quant_conv)\.weight', r'\1.kernel', 'point3'),
  (r'(.*\.conv_shortcut)\.weight', r'\1.kernel', 'point3'),
  (r'(.*)\.weight', r'\1.kernel', 'conv3'),
  (r'(.*)\.bias', r'\1.bias', 'same'),
)

# The inverse of TABLE, from parameters to published names.
INVERSE = (
  (r'(.*attentions\.\d+\.norm)\.gamma', r'\1.gamma', 'gain2'),
  (r'(.*)\.gamma', r'\1.gamma', 'gain3'),
  (r'(.*)\.resample\.kernel', r'\1.resample.1.weight', 'conv2'),
  (r'(.*)\.resample\.bias', r'\1.resample.1.bias', 'same'),
  (r'(.*\.(?:to_qkv|proj))\.kernel', r'\1.weight', 'point2'),
  (r'((?:post_)?quant_conv)\.kernel', r'\1.weight', 'point3'),
  (r'(.*\.conv_shortcut)\.kernel', r'\1.weight', 'point3'),
  (r'(.*)\.kernel', r'\1.weight', 'conv3'),
  (r'(.*)\.bias', r'\1.bias', 'same'),
)


def rows(
  paths: Iterable[str],
) -> Iterator[tuple[str, str, int | None, str]]:
  """Yields (published name, path, None as its layer, layout) of tensors."""
  for path in paths:
    name = re.sub(r'_(\d+)(?=\.)', r'.\1', path)
    target, layout = layouts.match(name, INVERSE)
    yield target, path, None, layout


def params_from_torch_names(tensors: dict[str, np.ndarray]) -> dict:
  """Converts published tensors by name to the params of `WanAutoencoder`.

  Raises:
    ValueError: a name that no row of the table matches.
  """
  params = {}
  for name, tensor in tensors.items():
    target, layout = layouts.match(name, TABLE)
    path = re.sub(r'\.(\d+)(?=\.)', r'_\1', target).split('.')
    layouts.put(params, path, layouts.FROM_TORCH[layout](tensor))
  return params


def torch_names_from_params(params: dict) -> dict[str, np.ndarray]:
  """Converts the params of `WanAutoencoder` to published tensors by name."""
  arrays = {'.'.join(path): array for path, array in layouts.leaves(params)}
  return {
    name: layouts.TO_TORCH[layout](np.asarray(arrays[path]))
    for name, path, _, layout in rows(arrays)
  }


# -- config.json --------------------------------------------------------------

# diffusers' defaults.
CONFIG = dict(
  base_dim=96,
  decoder_base_dim=None,
  z_dim=16,
  dim_mult=(1, 2, 4, 4),
  num_res_blocks=2,
  attn_scales=(),
  temperal_downsample=(False, True, True),
  dropout=0.0,
  latents_mean=wan.WAN21_MEAN,
  latents_std=wan.WAN21_STD,
  is_residual=False,
  in_channels=3,
  out_channels=3,
  patch_size=None,
  scale_factor_temporal=4,
  scale_factor_spatial=8,
)


def read_config(values: dict, where) -> wan.WanAutoencoderConfig:
  """Reads the sizes of an autoencoder from its config.json.

  Raises:
    ValueError: another family, or a variant that is not supported.
  """
  config_json.check_class(
    values.get('_class_name'), (config_json.CLASSES['vae'],), where
  )
  values = config_json.with_defaults(values, CONFIG, where)
  patch = values['patch_size'] or 1
  config = wan.WanAutoencoderConfig(
    base_dim=values['base_dim'],
    decoder_base_dim=values['decoder_base_dim'] or 0,
    z_dim=values['z_dim'],
    dim_mult=tuple(values['dim_mult']),
    num_res_blocks=values['num_res_blocks'],
    temporal_downsample=tuple(values['temperal_downsample']),
    is_residual=values['is_residual'],
    patch_size=patch,
    latents_mean=tuple(values['latents_mean']),
    latents_std=tuple(values['latents_std']),
  )
  channels = 3 * patch**2
  config_json.require(
    values, where, in_channels=channels, out_channels=channels
  )
  config_json.require(values, where, attn_scales=())
  return config


def write_config(config: wan.WanAutoencoderConfig) -> dict:
  """The config.json of an autoencoder."""
  patch = config.patch_size
  time, space, _ = config.stride
  return CONFIG | dict(
    _class_name=config_json.CLASSES['vae'],
    base_dim=config.base_dim,
    decoder_base_dim=config.decoder_base_dim or None,
    z_dim=config.z_dim,
    dim_mult=config.dim_mult,
    num_res_blocks=config.num_res_blocks,
    temperal_downsample=config.temporal_downsample,
    latents_mean=config.latents_mean or (0.0,) * config.z_dim,
    latents_std=config.latents_std or (1.0,) * config.z_dim,
    is_residual=config.is_residual,
    in_channels=3 * patch**2,
    out_channels=3 * patch**2,
    patch_size=patch if patch > 1 else None,
    scale_factor_temporal=time,
    scale_factor_spatial=space,
  )
