"""Sizes of a published transformer, inferred from its tensors."""

import functools
import math
import pathlib
from collections.abc import Callable, Collection, Mapping

from spacetime.checkpoint import mismatch
from spacetime.checkpoint.interop import tensor_files, wan_transformer
from spacetime.models.transformer import dit

# Head size of every published transformer.
HEAD = 128


def infer_config(
  tensors: Mapping[str, tensor_files.Tensor], where: pathlib.Path
) -> dit.DiTConfig:
  """Infers the sizes of a transformer from its tensors, without a config.

  Raises:
    ValueError: missing tensors, or a head size other than HEAD.
  """
  wan_transformer.check_names(tensors, where)
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  sizes = functools.partial(mismatch.sizes, shapes, where=where)
  width, channels, *patch = sizes('patch_embedding.weight', axes=5)
  out = sizes('proj_out.weight', axes=2)[0] // math.prod(patch)
  kind = wan_transformer.variant_of_names(tensors)
  if width % HEAD:
    raise ValueError(
      f'{where}: the number of heads does not follow from a width of {width}: '
      f'expected a multiple of {HEAD}, or config.json beside the file'
    )
  frequencies, text_width = (
    sizes(f'condition_embedder.{name}_embedder.linear_1.weight', axes=2)[1]
    for name in ('time', 'text')
  )
  return dit.DiTConfig(
    channels=out,
    patch=tuple(patch),
    width=width,
    heads=width // HEAD,
    layers=wan_transformer.count_layers(tensors),
    mlp=sizes('blocks.0.ffn.net.0.proj.weight', axes=2)[0],
    text_width=text_width,
    frequencies=frequencies,
    cond_channels=channels - out,
    **_variant_sizes(tensors, kind, sizes),
  )


def _variant_sizes(
  names: Collection[str], kind: wan_transformer.Variant, shape: Callable
) -> dict:
  """Sizes of a transformer that only some variants have."""
  sizes = {}
  if kind.image:
    name = wan_transformer.IMAGE_EMBEDDER + 'norm1.weight'
    sizes['image_width'] = shape(name, axes=1)[0]
  if kind.image_position:
    name = wan_transformer.IMAGE_POSITION
    sizes['image_tokens'] = shape(name, axes=3)[1]
  if kind.control:
    # Published models have them at equal distances, from the first layer on.
    step = wan_transformer.count_layers(names) // kind.control
    sizes['control_layers'] = tuple(step * i for i in range(kind.control))
    name = 'vace_patch_embedding.weight'
    sizes['control_channels'] = shape(name, axes=5)[1]
  if kind.flow_map:
    sizes['flow_map'] = wan_transformer.CLASS_CONFIG[wan_transformer.ANYFLOW][
      'gate_value'
    ]
  return sizes
