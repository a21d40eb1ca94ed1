"""Names and layouts of the published Wan autoencoders, as a table.

A row: a pattern of the published name, the name of the parameter here, the
layout. Rows are tried in order and the first match decides. What is left of a
name differs only in that a list's index hangs on by a dot there (`resnets.0`)
and by an underscore here (`resnets_0`).
"""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from spacetime.checkpoint.interop import layouts

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

# The same rows from here to there.
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
  """Every tensor: published name, path here, None for its layer, layout."""
  for path in paths:
    name = re.sub(r'_(\d+)(?=\.)', r'.\1', path)
    target, layout = layouts.match(name, INVERSE)
    yield target, path, None, layout


def params_from_torch_names(tensors: dict[str, np.ndarray]) -> dict:
  """Published tensors by name -> the parameter tree of `Autoencoder`.

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
  """The parameter tree of `Autoencoder` -> published tensors by name."""
  arrays = {'.'.join(path): array for path, array in layouts.leaves(params)}
  return {
    name: layouts.TO_TORCH[layout](np.asarray(arrays[path]))
    for name, path, _, layout in rows(arrays)
  }
