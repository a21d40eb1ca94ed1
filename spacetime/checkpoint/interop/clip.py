"""CLIP's published image encoder: names, layouts and config.json.

A row has the published name, the path of the parameter and the layout; see
umt5.py.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from spacetime.checkpoint import mismatch
from spacetime.checkpoint.interop import config_json, layouts
from spacetime.models import image_encoder

PREFIX = 'vision_model.'
HEAD = 80  # channels of a head of ViT-H/14
TABLE = (
  ('embeddings.class_embedding', 'class_embed', 'same'),
  ('embeddings.patch_embedding.weight', 'patch_embed.kernel', 'patch'),
  ('embeddings.position_embedding.weight', 'pos_embed', 'same'),
  ('pre_layrnorm.weight', 'norm_in.scale', 'same'),  # spelt so
  ('pre_layrnorm.bias', 'norm_in.bias', 'same'),
  ('post_layernorm.weight', 'norm_out.scale', 'same'),
  ('post_layernorm.bias', 'norm_out.bias', 'same'),
)
BLOCK = 'encoder.layers.{i}.'
NORMS = (('layer_norm1', 'norm_attention'), ('layer_norm2', 'norm_mlp'))
LINEAR = (
  ('self_attn.q_proj', 'q'),
  ('self_attn.k_proj', 'k'),
  ('self_attn.v_proj', 'v'),
  ('self_attn.out_proj', 'out'),
  ('mlp.fc1', 'mlp_in'),
  ('mlp.fc2', 'mlp_out'),
)


def published_name(name: str) -> str:
  """Converts a tensor's name to the published one; newer files have no
  prefix."""
  return name if name.startswith(PREFIX) else PREFIX + name


def published_names(names: Iterable[str]) -> dict[str, str]:
  """Maps names to the published ones, without the numbers 0, 1, ... of
  positions, which some files have and no network needs."""
  return {n: published_name(n) for n in names if 'position_ids' not in n}


def rows(layers: int) -> Iterator[tuple[str, str, int | None, str]]:
  """Yields (published name, path, layer or None, layout) of every tensor."""
  for name, path, layout in TABLE:
    yield PREFIX + name, path, None, layout
  kinds = [
    (NORMS, ('weight', 'scale', 'same'), ('bias', 'bias', 'same')),
    (LINEAR, ('weight', 'kernel', 'linear'), ('bias', 'bias', 'same')),
  ]
  for i in range(layers):
    for modules, *leaves in kinds:
      for module, path in modules:
        for tail, leaf, layout in leaves:
          name = f'{PREFIX}{BLOCK.format(i=i)}{module}.{tail}'
          yield name, f'blocks.{path}.{leaf}', i, layout


def from_torch(tensor: np.ndarray, layout: str) -> np.ndarray:
  """Converts a published tensor to the layout of its parameter."""
  if layout == 'patch':
    kernel = layouts.FROM_TORCH['conv2'](tensor)
    return kernel.reshape(-1, kernel.shape[-1])
  return layouts.FROM_TORCH[layout](tensor)


def to_torch(array: np.ndarray, layout: str, *, patch: int) -> np.ndarray:
  """The inverse of from_torch; `patch` is the side of a patch."""
  if layout == 'patch':
    kernel = array.reshape(patch, patch, -1, array.shape[-1])
    return layouts.TO_TORCH['conv2'](kernel)
  return layouts.TO_TORCH[layout](array)


# -- config.json --------------------------------------------------------------

# Defaults of transformers, for keys that a config.json does not have.
CONFIG = dict(
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  image_size=224,
  patch_size=32,
  layer_norm_eps=1e-5,
  hidden_act='quick_gelu',
  num_channels=3,
)


def read_config(values: dict, where) -> image_encoder.ImageConfig:
  """Reads the sizes of an image encoder; keys that change no output of ours,
  such as dropout, are ignored.

  Raises:
    ValueError: another class, or another activation.
  """
  names = values.get('architectures') or [None]
  expected = (
    config_json.CLASSES['image_encoder'],
    'CLIPVisionModelWithProjection',
  )
  config_json.check_class(names[0], expected, where)
  values = {k: v for k, v in values.items() if k in CONFIG}
  values = config_json.with_defaults(values, CONFIG, where)
  if (values.pop('hidden_act'), values.pop('num_channels')) != ('gelu', 3):
    raise ValueError(
      f"{where}: expected hidden_act='gelu' and num_channels=3, as in the "
      'image encoder of Wan 2.1'
    )
  return image_encoder.ImageConfig(**values)


def infer_config(
  shapes: Mapping[str, tuple[int, ...]], where
) -> image_encoder.ImageConfig:
  """Infers the sizes of an image encoder from its tensors, without a config.

  Args:
    shapes: shapes by published name.
    where: the file, for the message.

  Raises:
    ValueError: another encoder than ViT-H/14, whose heads have 80 channels.
  """
  patch = f'{PREFIX}embeddings.patch_embedding.weight'
  mlp = f'{PREFIX}{BLOCK.format(i=0)}mlp.fc1.weight'
  positions = f'{PREFIX}embeddings.position_embedding.weight'
  if missing := sorted({patch, mlp, positions} - shapes.keys()):
    raise ValueError(
      f"{where} lacks {', '.join(missing)}: expected CLIP's ViT-H/14 with "
      "transformers' names"
    )
  sizes = functools.partial(mismatch.sizes, shapes, where=where)
  width, _, side, _ = sizes(patch, axes=4)
  if width % HEAD:
    raise ValueError(
      f'{where}: the heads do not follow from a width of {width}: expected '
      "CLIP's ViT-H/14, or its config.json beside it"
    )
  return image_encoder.ImageConfig(
    hidden_size=width,
    intermediate_size=sizes(mlp, axes=2)[0],
    num_hidden_layers=layouts.count(r'.*encoder\.layers\.(\d+)\.', shapes),
    num_attention_heads=width // HEAD,
    image_size=side * math.isqrt(sizes(positions, axes=2)[0] - 1),
    patch_size=side,
  )


def write_config(config: image_encoder.ImageConfig) -> dict:
  """The config.json of an image encoder."""
  return CONFIG | dict(
    architectures=[config_json.CLASSES['image_encoder']],
    model_type='clip_vision_model',
    hidden_act='gelu',
    hidden_size=config.hidden_size,
    intermediate_size=config.intermediate_size,
    num_hidden_layers=config.num_hidden_layers,
    num_attention_heads=config.num_attention_heads,
    image_size=config.image_size,
    patch_size=config.patch_size,
    layer_norm_eps=config.layer_norm_eps,
  )


def processor(config: image_encoder.ImageConfig) -> dict:
  """The preprocessor_config.json of an image encoder's inputs."""
  side = config.image_size
  return dict(
    image_processor_type='CLIPImageProcessor',
    do_resize=True,
    size={'shortest_edge': side},
    resample=3,  # cubic
    do_center_crop=True,
    crop_size={'height': side, 'width': side},
    do_rescale=True,
    rescale_factor=1 / 255,
    do_normalize=True,
    image_mean=image_encoder.MEAN,
    image_std=image_encoder.STD,
    do_convert_rgb=True,
  )
