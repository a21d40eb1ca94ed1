"""The published Wan transformers: names, layouts and config.json.

A row has the published name (diffusers'), the path of the parameter and the
layout. Names in a block contain its layer `i`; here the layers of a parameter
are stacked along a leading axis. Names of the original repository, with or
without ComfyUI's prefix, are converted to diffusers' first.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

from spacetime.checkpoint import mismatch
from spacetime.checkpoint.interop import config_json, layouts
from spacetime.models.transformer import dit

PREFIXES = (
  *('model.diffusion_model.', 'diffusion_model.', 'model.'),
  *('pipe.dit.', 'dit.', 'transformer.'),
)

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

# Tensors that only some variants have. Image-to-video models of Wan 2.1:
IMAGE_TABLE = (
  ('norm1.weight', 'norm_in.scale', 'same'),
  ('norm1.bias', 'norm_in.bias', 'same'),
  ('norm2.weight', 'norm_out.scale', 'same'),
  ('norm2.bias', 'norm_out.bias', 'same'),
)
IMAGE_LINEAR = (('ff.net.0.proj', 'in'), ('ff.net.2', 'out'))
IMAGE_EMBEDDER = 'condition_embedder.image_embedder.'
IMAGE_POSITION = IMAGE_EMBEDDER + 'pos_embed'
BLOCK_IMAGE_TABLE = (
  ('attn2.norm_added_k.weight', 'cross_attention.norm_k_image.scale', 'same'),
)
BLOCK_IMAGE_LINEAR = (
  ('attn2.add_k_proj', 'cross_attention.k_image'),
  ('attn2.add_v_proj', 'cross_attention.v_image'),
)
# VACE, whose control blocks are blocks with further tensors:
CONTROL_TABLE = (
  ('vace_patch_embedding.weight', 'control_embed.kernel', 'patch'),
  ('vace_patch_embedding.bias', 'control_embed.bias', 'same'),
)
CONTROL_LINEAR = (('vace_blocks.0.proj_in', 'control_in'),)
CONTROL_BLOCK = 'vace_blocks.{i}.'
CONTROL_BLOCK_LINEAR = (('proj_out', 'hint'),)
# AnyFlow:
FLOW_MAP_LINEAR = (
  ('condition_embedder.delta_embedder.linear_1', 'end_in'),
  ('condition_embedder.delta_embedder.linear_2', 'end_out'),
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
  'img_emb.emb_pos': IMAGE_POSITION,
} | {
  f'img_emb.proj.{i}': IMAGE_EMBEDDER + name
  for i, name in (
    (0, 'norm1'),
    (1, 'ff.net.0.proj'),
    (3, 'ff.net.2'),
    (4, 'norm2'),
  )
}
BLOCK_ORIGINAL = {
  'modulation': 'scale_shift_table',
  'norm3': 'norm2',
  'ffn.0': 'ffn.net.0.proj',
  'ffn.2': 'ffn.net.2',
  'cross_attn.k_img': 'attn2.add_k_proj',
  'cross_attn.v_img': 'attn2.add_v_proj',
  'cross_attn.norm_k_img': 'attn2.norm_added_k',
  'before_proj': 'proj_in',
  'after_proj': 'proj_out',
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

# Block, module and kind of a tensor's name.
_PARTS = re.compile(
  r'((?:vace_)?blocks\.\d+\.)?(.*?)(\.weight|\.bias)?', re.DOTALL
)
# Modules that only the variants conditioned on an image have.
IMAGE = re.compile(r'image_embedder|img_emb|add_[kv]_proj|norm_added_k|_img\.')


def published_name(name: str) -> str:
  """Converts a tensor's name in any dialect to diffusers' name."""
  for prefix in PREFIXES:
    name = name.removeprefix(prefix)
  block, module, kind = _PARTS.fullmatch(name).groups(default='')
  renamed = BLOCK_ORIGINAL if block else ORIGINAL
  return block + renamed.get(module, module) + kind


def published_names(names: Iterable[str]) -> dict[str, str]:
  """Maps names in any dialect to those of diffusers."""
  return {name: published_name(name) for name in names}


def original_name(name: str) -> str:
  """Converts diffusers' name of a tensor to the original repository's."""
  block, module, kind = _PARTS.fullmatch(name).groups(default='')
  renamed = BLOCK_ORIGINAL if block else ORIGINAL
  back = {there: original for original, there in renamed.items()}
  return block + back.get(module, module) + kind


@dataclasses.dataclass(frozen=True)
class Variant:
  """The tensors that a transformer has beyond those of every other.

  Attributes:
    image: whether its cross-attention sees images.
    image_position: whether these have learned positions.
    control: number of control blocks.
    flow_map: whether it has a second time.
  """

  image: bool = False
  image_position: bool = False
  control: int = 0
  flow_map: bool = False


TEXT_VARIANT = Variant()


def variant(config: dit.DiTConfig) -> Variant:
  """The variant of a transformer's sizes."""
  return Variant(
    image=config.image_width > 0,
    image_position=config.image_tokens > 0,
    control=len(config.control_layers),
    flow_map=config.flow_map > 0,
  )


def variant_of_names(names: Iterable[str]) -> Variant:
  """The variant that published names belong to."""
  names = list(names)

  def has(text):
    return any(text in name for name in names)

  return Variant(
    image=has(IMAGE_EMBEDDER) or has('attn2.add_k_proj'),
    image_position=has(IMAGE_POSITION),
    control=count_layers(names, 'vace_blocks'),
    flow_map=has('delta_embedder'),
  )


def rows(
  layers: int, variant: Variant = TEXT_VARIANT
) -> Iterator[tuple[str, str, int | None, str]]:
  """Yields (published name, path, layer or None, layout) of every tensor."""
  table = [*TABLE, *_linear(LINEAR)]
  block = [*BLOCK_TABLE, *_linear(BLOCK_LINEAR)]
  control_block = [*block, *_linear(CONTROL_BLOCK_LINEAR)]
  if variant.image:
    image = [*IMAGE_TABLE, *_linear(IMAGE_LINEAR)]
    table += [(IMAGE_EMBEDDER + n, f'image_embed.{p}', x) for n, p, x in image]
    block += [*BLOCK_IMAGE_TABLE, *_linear(BLOCK_IMAGE_LINEAR)]
  if variant.image_position:
    table.append((IMAGE_POSITION, 'image_embed.position', 'same'))
  if variant.control:
    table += [*CONTROL_TABLE, *_linear(CONTROL_LINEAR)]
  if variant.flow_map:
    table += _linear(FLOW_MAP_LINEAR)
  for name, path, layout in table:
    yield name, path, None, layout
  for i in range(layers):
    for tail, path, layout in block:
      yield BLOCK.format(i=i) + tail, 'blocks.' + path, i, layout
  for i in range(variant.control):
    for tail, path, layout in control_block:
      inside = '' if path.startswith('hint') else 'block.'
      path = f'control_blocks.{inside}{path}'
      yield CONTROL_BLOCK.format(i=i) + tail, path, i, layout


def count_layers(names: Iterable[str], stack: str = 'blocks') -> int:
  """The number of blocks in the published names, or of another stack."""
  return layouts.count(rf'{stack}\.(\d+)\.', names)


def check_names(names: Iterable[str], where) -> None:
  """Refuses published names that are not those of a Wan transformer.

  Args:
    names: published names.
    where: the file, for the message.

  Raises:
    ValueError: names that are missing or not in the tables of the variant; all
      of them in one message.
  """
  names = set(names)
  layers, kind = max(count_layers(names), 1), variant_of_names(names)
  expected = {name for name, *_ in rows(layers, kind)}
  missing, unknown = sorted(expected - names), sorted(names - expected)
  if missing or unknown:
    raise ValueError(
      f'{where}: expected the {len(expected)} tensors of a Wan transformer; '
      + mismatch.report({'missing': missing, 'unknown': unknown}, most=5)
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
  check_names(named, 'the transformer')
  params, stacks = {}, {}
  for name, path, layer, layout in rows(
    count_layers(named), variant_of_names(named)
  ):
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
  kind = Variant(
    image='image_embed.in.kernel' in arrays,
    image_position='image_embed.position' in arrays,
    control=len(arrays.get('control_blocks.block.modulation', ())),
    flow_map='end_in.kernel' in arrays,
  )
  for name, path, layer, layout in rows(len(arrays['blocks.modulation']), kind):
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
# Keys that only these classes have.
CLASS_CONFIG = {
  'WanVACETransformer3DModel': dict(vace_layers=(), vace_in_channels=96),
  'AnyFlowTransformer3DModel': dict(gate_value=0.25, deltatime_type='r'),
}
VACE, ANYFLOW = CLASS_CONFIG
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
  vace_layers=None,
  vace_in_dim=None,
)
# Width of CLIP's embeddings, and their tokens of two images.
IMAGE_WIDTH, IMAGE_TOKENS = 1280, 514


def read_config(values: dict, where: pathlib.Path | str) -> dit.DiTConfig:
  """Reads the sizes of a transformer from diffusers' or the original config.

  Raises:
    ValueError: another family, a variant, or an unknown key.
  """
  name = values.get('_class_name')
  if name in ('WanModel', 'VaceWanModel'):
    return _read_original(values, where)
  config_json.check_class(
    name,
    (config_json.CLASSES['transformer'], *CLASS_CONFIG, 'WanModel'),
    where,
  )
  more = CLASS_CONFIG.get(name, {})
  values = config_json.with_defaults(values, CONFIG | more, where)
  config_json.require(
    values, where, qk_norm='rms_norm_across_heads', cross_attn_norm=True
  )
  if name == ANYFLOW:
    config_json.require(values, where, deltatime_type='r')
  width = values['num_attention_heads'] * values['attention_head_dim']
  sees_images = values['image_dim'] is not None
  config_json.require(
    values, where, added_kv_proj_dim=width if sees_images else None
  )
  images = (values['image_dim'], values['pos_embed_seq_len'])
  image_width, image_tokens = images if sees_images else (0, 0)
  if values['in_channels'] < values['out_channels']:
    config_json.require(values, where, in_channels=values['out_channels'])
  return dit.DiTConfig(
    channels=values['out_channels'],
    patch=tuple(values['patch_size']),
    width=width,
    heads=values['num_attention_heads'],
    layers=values['num_layers'],
    mlp=values['ffn_dim'],
    text_width=values['text_dim'],
    frequencies=values['freq_dim'],
    eps=values['eps'],
    cond_channels=values['in_channels'] - values['out_channels'],
    image_width=image_width,
    image_tokens=image_tokens or 0,
    control_layers=tuple(values['vace_layers']) if name == VACE else (),
    control_channels=values['vace_in_channels'] if name == VACE else 0,
    flow_map=values['gate_value'] if name == ANYFLOW else 0.0,
  )


def without_images(
  config: dit.DiTConfig, names: Iterable[str]
) -> dit.DiTConfig:
  """The config without embeddings of images if the tensors have none."""
  if variant_of_names(names).image:
    return config
  return dataclasses.replace(config, image_width=0, image_tokens=0)


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
  name, more = config_json.CLASSES['transformer'], {}
  if config.control_layers:
    name = VACE
    more = dict(
      vace_layers=config.control_layers,
      vace_in_channels=config.control_channels,
    )
  if config.flow_map:
    name, more = ANYFLOW, dict(gate_value=config.flow_map, deltatime_type='r')
  values = CONFIG | dict(
    _class_name=name,
    patch_size=config.patch,
    num_attention_heads=config.heads,
    attention_head_dim=config.width // config.heads,
    in_channels=config.channels + config.cond_channels,
    out_channels=config.channels,
    text_dim=config.text_width,
    freq_dim=config.frequencies,
    ffn_dim=config.mlp,
    num_layers=config.layers,
    eps=config.eps,
    image_dim=config.image_width or None,
    added_kv_proj_dim=config.width if config.image_width else None,
    pos_embed_seq_len=config.image_tokens or None,
    **more,
  )
  if config.flow_map:
    for key in ('qk_norm', 'added_kv_proj_dim', 'pos_embed_seq_len'):
      del values[key]  # its class has none of them
  return values


def _read_original(values, where) -> dit.DiTConfig:
  vace = values['_class_name'] == 'VaceWanModel'
  values = config_json.with_defaults(values, ORIGINAL_CONFIG, where)
  config_json.require(values, where, qk_norm=True, cross_attn_norm=True)
  kind = values['model_type']
  if kind not in ('t2v', 'ti2v', 'i2v', 'flf2v', 'vace'):
    raise ValueError(
      f'{where}: model_type={kind!r}: expected t2v, ti2v, i2v, flf2v or vace'
    )
  # Those of Wan 2.2 have the same config without it: see without_images.
  sees_images = kind in ('i2v', 'flf2v')
  return dit.DiTConfig(
    channels=values['out_dim'],
    patch=tuple(values['patch_size']),
    width=values['dim'],
    heads=values['num_heads'],
    layers=values['num_layers'],
    mlp=values['ffn_dim'],
    text_width=values['text_dim'],
    frequencies=values['freq_dim'],
    eps=values['eps'],
    cond_channels=values['in_dim'] - values['out_dim'],
    image_width=IMAGE_WIDTH if sees_images else 0,
    image_tokens=IMAGE_TOKENS if kind == 'flf2v' else 0,
    control_layers=tuple(values['vace_layers'] or ()) if vace else (),
    control_channels=values['vace_in_dim'] if vace else 0,
  )
