"""The published networks: names, layouts and shapes of their tensors."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from spacetime.checkpoint import mismatch
from spacetime.checkpoint.interop import (
  clip,
  families,
  layouts,
  umt5,
  wan_transformer,
  wan_vae,
)
from spacetime.checkpoint.interop.tensor_files import Tensor
from spacetime.models import image_encoder, text_encoder
from spacetime.models.autoencoder import wan
from spacetime.models.transformer import dit

# Modules with read_config, write_config and rows of each kind of network.
FORMATS = {
  'transformer': wan_transformer,
  'vae': wan_vae,
  'text_encoder': umt5,
  'image_encoder': clip,
}
# Root of a kind's parameters, as in sharding.PARAM_LOGICAL_AXES.
ROOTS = {
  'transformer': 'dit',
  'vae': 'autoencoder',
  'text_encoder': 'text',
  'image_encoder': 'image',
}
# Modules that trainers put a network into.
OUTERMOST = re.compile(r'^(?:(?:module|net|model|generator)\.)+')


@dataclasses.dataclass(frozen=True)
class Network:
  """Names, layouts and shapes of a published network's tensors.

  Attributes:
    kind: 'transformer', 'vae', 'text_encoder' or 'image_encoder'.
    config: sizes of the network.
    shapes: shapes of the parameters by path, such as 'blocks.mlp_in.kernel'.
    rows: (published name, path, layer or None, layout) of every tensor.
    from_torch: (tensor, layout) -> array, a view where possible.
    to_torch: (array, layout) -> tensor.
  """

  kind: str
  config: (
    dit.DiTConfig
    | wan.WanAutoencoderConfig
    | text_encoder.TextConfig
    | image_encoder.ImageConfig
  )
  shapes: Mapping[str, tuple[int, ...]]
  rows: tuple[tuple[str, str, int | None, str], ...]
  from_torch: Callable
  to_torch: Callable

  def published_shapes(self) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors by published name."""
    shapes = {}
    for name, path, layer, layout in self.rows:
      shape = self.shapes[path] if layer is None else self.shapes[path][1:]
      zeros = np.broadcast_to(np.float32(0), shape)
      shapes[name] = self.to_torch(zeros, layout).shape
    return shapes


# Cached, since tracing is slow and two transformers share a config.
@functools.lru_cache(maxsize=8)
def of(config) -> Network:
  """The network of a config, chosen by the config's class."""
  if isinstance(config, dit.DiTConfig):
    shapes = _shapes(_transformer(config))
    rows = wan_transformer.rows(config.layers, wan_transformer.variant(config))
    to_torch = functools.partial(wan_transformer.to_torch, patch=config.patch)
    kind, from_torch = 'transformer', wan_transformer.from_torch
  elif isinstance(config, image_encoder.ImageConfig):
    shapes = _shapes(image_encoder.ImageEncoder(config).init)
    rows = clip.rows(config.num_hidden_layers)
    to_torch = functools.partial(clip.to_torch, patch=config.patch_size)
    kind, from_torch = 'image_encoder', clip.from_torch
  else:
    from_torch, to_torch = _from_torch, _to_torch
    if isinstance(config, text_encoder.TextConfig):
      kind, shapes = (
        'text_encoder',
        _shapes(text_encoder.TextEncoder(config).init),
      )
      rows = umt5.rows(shapes)
    else:
      kind, shapes = 'vae', _shapes(wan.WanAutoencoder(config).init)
      rows = wan_vae.rows(shapes)
  return Network(kind, config, shapes, tuple(rows), from_torch, to_torch)


def _from_torch(tensor, layout: str):
  return layouts.FROM_TORCH[layout](tensor)


def _to_torch(array, layout: str):
  return layouts.TO_TORCH[layout](array)


def _transformer(config: dit.DiTConfig):
  inputs, more = dit.empty_inputs(config)
  return lambda key: dit.DiT(config).init(key, *inputs, **more)['params']


def _shapes(init) -> dict[str, tuple[int, ...]]:
  tree = jax.eval_shape(init, jax.random.key(0))
  return {'.'.join(path): leaf.shape for path, leaf in layouts.leaves(tree)}


def published_names(kind: str, names: Iterable[str], where) -> dict[str, str]:
  """Maps names in a file to those of diffusers and transformers.

  Tied tensors that a file holds twice are returned once.

  Raises:
    ValueError: a tensor under two names.
  """
  names = families.component(kind, names)
  plain = {n: OUTERMOST.sub('', layouts.unwrapped(n)) for n in names}
  published = FORMATS[kind].published_names(plain.values())
  renamed = {n: published[p] for n, p in plain.items() if p in published}
  seen = {}
  for name, target in renamed.items():
    seen.setdefault(target, []).append(name)
  doubled = [name for same in seen.values() if len(same) > 1 for name in same]
  if doubled:
    raise ValueError(
      f'{where} has tensors under two names: {mismatch.listed(doubled)}: '
      'expected each once, in one dialect of names'
    )
  return renamed


def check(network: Network, tensors: Mapping[str, Tensor], where) -> None:
  """Checks tensors against a network; reports all faults in one message.

  Args:
    network: the expected network.
    tensors: tensors by published name.
    where: the file or folder, for the message.

  Raises:
    ValueError: tensors missing, unexpected or of other shapes; the message
      names another family, or an image-to-video variant.
  """
  expected = network.published_shapes()
  unexpected = tensors.keys() - expected.keys()
  image = {name for name in unexpected if wan_transformer.IMAGE.search(name)}
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  faults = mismatch.compare(shapes, expected)
  faults['unexpected'] = unexpected - image
  faults['of an image-to-video variant, which its config is not'] = image
  if text := mismatch.report(faults, most=5):
    raise ValueError(
      f'{where}: expected the {len(expected)} tensors of the {network.kind} '
      f'that its config describes; {text}'
    )
