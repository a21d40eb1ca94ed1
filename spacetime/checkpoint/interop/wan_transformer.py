"""The published Wan transformers: names, layouts and config.json.

A row has the published name (diffusers'), the path of the parameter and the
layout. Names in a block contain its layer `i`; here the layers of a parameter
are stacked along a leading axis. Names of the original repository, with or
without ComfyUI's prefix, are converted to diffusers' first.
"""

import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

from spacetime.checkpoint import mismatch
from spacetime.checkpoint.interop import config_json, layouts
from spacetime.models.transformer import dit

PREFIXES = ('model.diffusion_model.', 'diffusion_model.', 'model.')

TABLE = (
  ('scale_shift_table', 'head_modulation', 'table'),
  ('patch_embedding.weight', 'patch_embed.kernel', 'patch'),
  ('patch_embedding.bias', 'patch_embed.bias', 'same'),
)
BLOCK = 'blocks.{i}.'
BLOCK_TABLE = (
  ('scale_shift_table', 'modulation', 'table'),
  ('attn1.norm_q.weight', 'self_attention.norm_q.scale', 'same'),
  ('attn1.norm_k.weight', 'self_attention.norm_k.scale', 'same'),
  ('attn2.norm_q.weight', 'cross_attention.norm_q.scale', 'same'),
  ('attn2.norm_k.weight', 'cross_attention.norm_k.scale', 'same'),
  ('norm2.weight', 'norm_cross.scale', 'same'),
  ('norm2.bias', 'norm_cross.bias', 'same'),
)

# A linear layer is two rows: a transposed weight and a bias.
LINEAR = (
  ('condition_embedder.time_embedder.linear_1', 'time_in'),
  ('condition_embedder.time_embedder.linear_2', 'time_out'),
  ('condition_embedder.time_proj', 'time_modulation'),
  ('condition_embedder.text_embedder.linear_1', 'text_in'),
  ('condition_embedder.text_embedder.linear_2', 'text_out'),
  ('proj_out', 'head'),
)
BLOCK_LINEAR = (
  ('attn1.to_q', 'self_attention.q'),
  ('attn1.to_k', 'self_attention.k'),
  ('attn1.to_v', 'self_attention.v'),
  ('attn1.to_out.0', 'self_attention.out'),
  ('attn2.to_q', 'cross_attention.q'),
  ('attn2.to_k', 'cross_attention.k'),
  ('attn2.to_v', 'cross_attention.v'),
  ('attn2.to_out.0', 'cross_attention.out'),
  ('ffn.net.0.proj', 'mlp_in'),
  ('ffn.net.2', 'mlp_out'),
)

# The original repository's names of modules -> diffusers'. The norm between the
# attentions is norm3 in the original and norm2 in diffusers.
ORIGINAL = {
  'time_embedding.0': 'condition_embedder.time_embedder.linear_1',
  'time_embedding.2': 'condition_embedder.time_embedder.linear_2',
  'text_embedding.0': 'condition_embedder.text_embedder.linear_1',
  'text_embedding.2': 'condition_embedder.text_embedder.linear_2',
  'time_projection.1': 'condition_embedder.time_proj',
  'head.modulation': 'scale_shift_table',
  'head.head': 'proj_out',
}
BLOCK_ORIGINAL = {
  'modulation': 'scale_shift_table',
  'norm3': 'norm2',
  'ffn.0': 'ffn.net.0.proj',
  'ffn.2': 'ffn.net.2',
} | {
  f'{there}_attn.{a}': f'{here}.{b}'
  for there, here in (('self', 'attn1'), ('cross', 'attn2'))
  for a, b in (
    ('q', 'to_q'),
    ('k', 'to_k'),
    ('v', 'to_v'),
    ('o', 'to_out.0'),
    ('norm_q', 'norm_q'),
    ('norm_k', 'norm_k'),
  )
}

# Modules that only the variants conditioned on an image have.
IMAGE = re.compile(r'image_embedder|img_emb|add_[kv]_proj|norm_added_k|_img\.')


def published_name(name: str) -> str:
  """Converts a tensor's name in any dialect to diffusers' name."""
  for prefix in PREFIXES:
    name = name.removeprefix(prefix)
  block, module, kind = re.fullmatch(
    r'(blocks\.\d+\.)?(.*?)(\.weight|\.bias)?', name, re.DOTALL
  ).groups(default='')
  renamed = BLOCK_ORIGINAL if block else ORIGINAL
  return block + renamed.get(module, module) + kind


def published_names(names: Iterable[str]) -> dict[str, str]:
  """Maps names in any dialect to those of diffusers."""
  return {name: published_name(name) for name in names}


def original_name(name: str) -> str:
  """Converts diffusers' name of a tensor to the original repository's."""
  block, module, kind = re.fullmatch(
    r'(blocks\.\d+\.)?(.*?)(\.weight|\.bias)?', name, re.DOTALL
  ).groups(default='')
  renamed = BLOCK_ORIGINAL if block else ORIGINAL
  back = {there: original for original, there in renamed.items()}
  return block + back.get(module, module) + kind


def rows(layers: int) -> Iterator[tuple[str, str, int | None, str]]:
  """Yields (published name, path, layer or None, layout) of every tensor."""
  for name, path, layout in (*TABLE, *_linear(LINEAR)):
    yield name, path, None, layout
  for i in range(layers):
    for tail, path, layout in (*BLOCK_TABLE, *_linear(BLOCK_LINEAR)):
      yield BLOCK.format(i=i) + tail, 'blocks.' + path, i, layout


def count_layers(names: Iterable[str]) -> int:
  """The number of blocks in the published names."""
  matches = [re.match(r'blocks\.(\d+)\.', name) for name in names]
  return 1 + max((int(m[1]) for m in matches if m), default=-1)


def check_names(names: Iterable[str]) -> None:
  """Refuses published names that are not those of a text-to-video model.

  Raises:
    ValueError: names that are missing, not in the table, or of a variant that
      is conditioned on an image; all of them in one message.
  """
  names = set(names)
  expected = {name for name, *_ in rows(max(count_layers(names), 1))}
  missing, unknown = sorted(expected - names), sorted(names - expected)
  image = [name for name in unknown if IMAGE.search(name)]
  if image:
    raise ValueError(
      f'{len(image)} tensors of an image-to-video variant, among them '
      f'{image[0]!r}: expected a text-to-video transformer; choose a T2V or '
      'TI2V folder'
    )
  if missing or unknown:
    raise ValueError(
      f'expected the {len(expected)} tensors of a Wan transformer; '
      + mismatch.report({'missing': missing, 'unknown': unknown}, most=20)
    )


def from_torch(tensor: np.ndarray, layout: str) -> np.ndarray:
  """Converts a published tensor to the layout of its parameter."""
  if layout == 'table':
    return tensor[0]
  if layout == 'patch':
    # The kernel's taps come before the channels in a token.
    kernel = layouts.FROM_TORCH['conv3'](tensor)
    return kernel.reshape(-1, kernel.shape[-1])
  return layouts.FROM_TORCH[layout](tensor)


def to_torch(
  array: np.ndarray, layout: str, *, patch: tuple[int, int, int] = (1, 2, 2)
) -> np.ndarray:
  """The inverse of from_torch; `patch` is the kernel's size."""
  if layout == 'table':
    return array[None]
  if layout == 'patch':
    kernel = array.reshape(*patch, -1, array.shape[-1])
    return layouts.TO_TORCH['conv3'](kernel)
  return layouts.TO_TORCH[layout](array)


def params_from_torch_names(tensors: dict[str, np.ndarray]) -> dict:
  """Converts published tensors by name to the params of `DiT`.

  Raises:
    ValueError: see check_names; or a tensor under two names.
  """
  named = {published_name(name): tensor for name, tensor in tensors.items()}
  if len(named) != len(tensors):
    raise ValueError(
      f'{len(tensors)} tensors of {len(named)} names: expected each tensor '
      'once, in one dialect of names'
    )
  check_names(named)
  params, stacks = {}, {}
  for name, path, layer, layout in rows(count_layers(named)):
    array = from_torch(named[name], layout)
    if layer is None:
      layouts.put(params, path.split('.'), array)
    else:
      stacks.setdefault(path, []).append(array)
  for path, arrays in stacks.items():
    layouts.put(params, path.split('.'), np.stack(arrays))
  return params


def torch_names_from_params(
  params: dict, *, patch: tuple[int, int, int] = (1, 2, 2)
) -> dict[str, np.ndarray]:
  """Converts the params of `DiT` to published tensors by name."""
  arrays = {
    '.'.join(path): np.asarray(array) for path, array in layouts.leaves(params)
  }
  tensors = {}
  for name, path, layer, layout in rows(len(arrays['blocks.modulation'])):
    array = arrays[path] if layer is None else arrays[path][layer]
    tensors[name] = to_torch(array, layout, patch=patch)
  return tensors


def _linear(modules) -> Iterator[tuple[str, str, str]]:
  for name, path in modules:
    yield name + '.weight', path + '.kernel', 'linear'
    yield name + '.bias', path + '.bias', 'same'


# -- config.json --------------------------------------------------------------

# Defaults of diffusers, for keys that a config.json does not have.
CONFIG = dict(
  patch_size=(1, 2, 2),
  num_attention_heads=40,
  attention_head_dim=128,
  in_channels=16,
  out_channels=16,
  text_dim=4096,
  freq_dim=256,
  ffn_dim=13824,
  num_layers=40,
  cross_attn_norm=True,
  qk_norm='rms_norm_across_heads',
  eps=1e-6,
  image_dim=None,
  added_kv_proj_dim=None,
  rope_max_seq_len=1024,
  pos_embed_seq_len=None,
)
# Defaults of the original repository's WanModel.
ORIGINAL_CONFIG = dict(
  patch_size=(1, 2, 2),
  model_type='t2v',
  text_len=512,
  in_dim=16,
  dim=2048,
  ffn_dim=8192,
  freq_dim=256,
  text_dim=4096,
  out_dim=16,
  num_heads=16,
  num_layers=32,
  window_size=(-1, -1),
  qk_norm=True,
  cross_attn_norm=True,
  eps=1e-6,
)


def read_config(values: dict, where: pathlib.Path | str) -> dit.DiTConfig:
  """Reads the sizes of a transformer from diffusers' or the original config.

  Raises:
    ValueError: another family, a variant, or an unknown key.
  """
  name = values.get('_class_name')
  if name == 'WanModel':
    return _read_original(values, where)
  config_json.check_class(
    name, (config_json.CLASSES['transformer'], 'WanModel'), where
  )
  values = config_json.with_defaults(values, CONFIG, where)
  for key in ('image_dim', 'added_kv_proj_dim', 'pos_embed_seq_len'):
    if values[key] is not None:
      config_json.refuse_image(where, f'{key}={values[key]}')
  if values['in_channels'] != values['out_channels']:
    text = f'in_channels={values["in_channels"]}, not out_channels'
    config_json.refuse_image(where, f'{text}={values["out_channels"]}')
  config_json.require(
    values, where, qk_norm='rms_norm_across_heads', cross_attn_norm=True
  )
  return dit.DiTConfig(
    channels=values['in_channels'],
    patch=tuple(values['patch_size']),
    width=values['num_attention_heads'] * values['attention_head_dim'],
    heads=values['num_attention_heads'],
    layers=values['num_layers'],
    mlp=values['ffn_dim'],
    text_width=values['text_dim'],
    frequencies=values['freq_dim'],
    eps=values['eps'],
  )


def write_config(config: dit.DiTConfig) -> dict:
  """The config.json of a transformer.

  Raises:
    ValueError: the published code has no such transformer.
  """
  if config.theta != 10000:
    raise ValueError(
      f'model.theta={config.theta}: expected 10000, which is fixed in the '
      'published code'
    )
  if config.pos_embed_frequencies:
    raise ValueError(
      f'model.pos_embed_frequencies={config.pos_embed_frequencies}: expected '
      '0, since the published code has no absolute position embedding'
    )
  return CONFIG | dict(
    _class_name=config_json.CLASSES['transformer'],
    patch_size=config.patch,
    num_attention_heads=config.heads,
    attention_head_dim=config.width // config.heads,
    in_channels=config.channels,
    out_channels=config.channels,
    text_dim=config.text_width,
    freq_dim=config.frequencies,
    ffn_dim=config.mlp,
    num_layers=config.layers,
    eps=config.eps,
  )


def _read_original(values, where) -> dit.DiTConfig:
  values = config_json.with_defaults(values, ORIGINAL_CONFIG, where)
  if values['model_type'] not in ('t2v', 'ti2v'):
    config_json.refuse_image(where, f'model_type={values["model_type"]!r}')
  if values['in_dim'] != values['out_dim']:
    config_json.refuse_image(
      where, f'in_dim={values["in_dim"]}, not out_dim={values["out_dim"]}'
    )
  config_json.require(values, where, qk_norm=True, cross_attn_norm=True)
  return dit.DiTConfig(
    channels=values['in_dim'],
    patch=tuple(values['patch_size']),
    width=values['dim'],
    heads=values['num_heads'],
    layers=values['num_layers'],
    mlp=values['ffn_dim'],
    text_width=values['text_dim'],
    frequencies=values['freq_dim'],
    eps=values['eps'],
  )
