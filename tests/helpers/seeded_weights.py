"""Weights that any version of numpy draws the same, from a name and a shape."""

import zlib

import jax
import numpy as np


def draw(name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
  """Normal numbers of a stream of their own, by the legacy generator."""
  stream = np.random.RandomState(zlib.crc32(name.encode()))
  return (scale * stream.standard_normal(shape)).astype(np.float32)


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Torch's tensors by name: gains near 1, kernels that keep the scale."""
  tensors = {}
  for name, shape in shapes.items():
    if name.endswith(('gamma', 'norm.weight')):
      tensors[name] = 1 + draw(name, shape, 0.2)
    elif name.endswith('bias'):
      tensors[name] = draw(name, shape, 0.2)
    else:
      fan_in = int(np.prod(shape[1:]))
      tensors[name] = draw(name, shape, fan_in**-0.5)
  return tensors


def tree(shapes, scale: float = 0.3):
  """Parameters of these shapes (of `eval_shape`), none zero: no compilation.

  A zero, such as a fresh gate's, would hide what lies behind it.
  """

  def leaf(path, shape):
    name = jax.tree_util.keystr(path)
    return draw(name, shape.shape, scale) + name.endswith("['scale']")

  return jax.tree_util.tree_map_with_path(leaf, shapes)
