"""The published Wan autoencoders: names, layouts and config.json.

A row has a pattern of the published name, the name of the parameter and the
layout; the first row that matches is used. In the rest of a name, the index of
a list follows a dot there (`resnets.0`) and an underscore here (`resnets_0`).
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from spacetime.checkpoint import mismatch
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


# The original repository's names -> diffusers', for any part of a name.
ORIGINAL = (
  (r'^conv1\.', 'quant_conv.'),
  (r'^conv2\.', 'post_quant_conv.'),
  (r'^(encoder|decoder)\.conv1\.', r'\1.conv_in.'),
  (r'\.head\.0\.', '.norm_out.'),
  (r'\.head\.2\.', '.conv_out.'),
  (r'\.middle\.0\.', '.mid_block.resnets.0.'),
  (r'\.middle\.1\.', '.mid_block.attentions.0.'),
  (r'\.middle\.2\.', '.mid_block.resnets.1.'),
  (r'\.residual\.0\.', '.norm1.'),
  (r'\.residual\.2\.', '.conv1.'),
  (r'\.residual\.3\.', '.norm2.'),
  (r'\.residual\.6\.', '.conv2.'),
  (r'\.shortcut\.', '.conv_shortcut.'),
  # Wan 2.2 nests its levels.
  (
    r'\.downsamples\.(\d+)\.downsamples\.\d+\.(resample|time_conv)\.',
    r'.down_blocks.\1.downsampler.\2.',
  ),
  (
    r'\.upsamples\.(\d+)\.upsamples\.\d+\.(resample|time_conv)\.',
    r'.up_blocks.\1.upsampler.\2.',
  ),
  (
    r'\.(down|up)samples\.(\d+)\.(?:down|up)samples\.(\d+)\.',
    r'.\1_blocks.\2.resnets.\3.',
  ),
  (r'\.downsamples\.(\d+)\.', r'.down_blocks.\1.'),
)
PREFIXES = ('vae.', 'first_stage_model.')
MARK = 'encoder.conv1.weight'  # a name that only the original dialect has


def published_names(names: Iterable[str]) -> dict[str, str]:
  """Maps names in any dialect to those of diffusers."""
  plain = {}
  for name in names:
    plain[name] = name
    for prefix in PREFIXES:
      plain[name] = plain[name].removeprefix(prefix)
  if MARK not in plain.values():
    return plain
  # In Wan 2.1 the decoder's levels are one list, cut by its upsamplers.
  flat = [
    re.fullmatch(r'decoder\.upsamples\.(\d+)\.resample\..*', name)
    for name in plain.values()
  ]
  period = 1 + min((int(match[1]) for match in flat if match), default=-1)
  return {name: _published(short, period) for name, short in plain.items()}


def _published(name: str, period: int) -> str:
  for pattern, target in ORIGINAL:
    name = re.sub(pattern, target, name)
  match = re.fullmatch(r'decoder\.upsamples\.(\d+)\.(.*)', name)
  if not match or not period:
    return name
  block, index = divmod(int(match[1]), period)
  part = 'upsamplers.0' if index == period - 1 else f'resnets.{index}'
  return f'decoder.up_blocks.{block}.{part}.{match[2]}'


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


# Statistics of the published autoencoders by their latent channels; a file of
# weights does not contain them. Source: wan/modules/vae2_2.py for 48.
WAN22_MEAN = (
  *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
  *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
  *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
  *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
  *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
  *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
WAN22_STD = (
  *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
  *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
  *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
  *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
  *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
  *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)
STATISTICS = {
  16: (wan.WAN21_MEAN, wan.WAN21_STD),
  48: (WAN22_MEAN, WAN22_STD),
}


def infer_config(
  shapes: Mapping[str, tuple[int, ...]], where
) -> wan.WanAutoencoderConfig:
  """Infers the sizes of an autoencoder from its tensors, without a config.

  Args:
    shapes: shapes by published name.
    where: the file, for the message.

  Raises:
    ValueError: missing tensors, or latent channels without known statistics.
  """
  base, pixels, *_ = _shape(shapes, 'encoder.conv_in.weight', where)
  z_dim = _shape(shapes, 'post_quant_conv.weight', where)[0]
  if z_dim not in STATISTICS:
    raise ValueError(
      f'{where}: statistics of {z_dim} latent channels are unknown: expected '
      f'{" or ".join(map(str, STATISTICS))}, or config.json beside the file'
    )
  residual = 'encoder.down_blocks.0.resnets.0.conv1.weight' in shapes
  levels, temporal = [[]], []
  pattern = re.compile(r'encoder\.down_blocks\.(\d+)\.(.*)')
  blocks = {}
  for name in shapes:
    if match := pattern.fullmatch(name):
      blocks.setdefault(int(match[1]), {})[match[2]] = name
  for _, block in sorted(blocks.items()):
    convs = [block[tail] for tail in block if tail.endswith('conv2.weight')]
    widths = [_shape(shapes, name, where)[0] for name in convs]
    levels[-1] += widths
    if any('resample.' in name for name in block):
      temporal.append(any('time_conv.' in name for name in block))
      levels.append([])
  mean, std = STATISTICS[z_dim]
  last = _shape(shapes, 'decoder.conv_out.weight', where)[1]
  return wan.WanAutoencoderConfig(
    base_dim=base,
    decoder_base_dim=0 if last == base else last,
    z_dim=z_dim,
    dim_mult=tuple(level[0] // base for level in levels if level),
    num_res_blocks=len(levels[0]),
    temporal_downsample=tuple(temporal),
    is_residual=residual,
    patch_size=math.isqrt(pixels // 3),
    latents_mean=mean,
    latents_std=std,
  )


def _shape(shapes, name: str, where) -> tuple[int, ...]:
  if name not in shapes:
    raise ValueError(
      f'{where} lacks {name}: expected the tensors of a Wan autoencoder'
    )
  return mismatch.sizes(shapes, name, axes=5, where=where)


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
