"""Names and layouts of the published T5 and UMT5 encoders, as a table.

A row: a pattern of the published name, the path of the parameter here, the
layout. A row of a block names its layer `i`; the layers of one parameter are
stacked on a leading axis here.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from spacetime.checkpoint.interop import layouts

# Tied weights: a file holds one of the names or both; the first counts.
EMBEDDINGS = ('shared.weight', 'encoder.embed_tokens.weight')

TABLE = (
  ('shared.weight', 'embed.embedding', 'same'),
  ('encoder.final_layer_norm.weight', 'norm_out.scale', 'same'),
)
BLOCK = 'encoder.block.{i}.'
BLOCK_TABLE = (
  ('layer.0.layer_norm.weight', 'norm_attention.scale', 'same'),
  ('layer.0.SelfAttention.q.weight', 'q.kernel', 'linear'),
  ('layer.0.SelfAttention.k.weight', 'k.kernel', 'linear'),
  ('layer.0.SelfAttention.v.weight', 'v.kernel', 'linear'),
  ('layer.0.SelfAttention.o.weight', 'out.kernel', 'linear'),
  ('layer.1.layer_norm.weight', 'norm_mlp.scale', 'same'),
  ('layer.1.DenseReluDense.wi_0.weight', 'mlp_gate.kernel', 'linear'),
  ('layer.1.DenseReluDense.wi_1.weight', 'mlp_in.kernel', 'linear'),
  ('layer.1.DenseReluDense.wo.weight', 'mlp_out.kernel', 'linear'),
)
# UMT5 has this in every block, T5 in block 0 for all of them.
POSITION = 'layer.0.SelfAttention.relative_attention_bias.weight'


def rows(
  shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, str, int | None, str]]:
  """Every tensor: published name, path here, layer or None, layout.

  Args:
    shapes: of the parameters by their paths.
  """
  for name, path, layout in TABLE:
    yield name, path, None, layout
  if 'position_bias' in shapes:
    yield BLOCK.format(i=0) + POSITION, 'position_bias', None, 'same'
  stacked = [*BLOCK_TABLE]
  if 'blocks.position_bias' in shapes:
    stacked.append((POSITION, 'position_bias', 'same'))
  for i in range(shapes['blocks.q.kernel'][0]):
    for tail, path, layout in stacked:
      yield BLOCK.format(i=i) + tail, 'blocks.' + path, i, layout


def params_from_torch_names(tensors: dict[str, np.ndarray]) -> dict:
  """Published tensors by name -> the parameter tree of `TextEncoder`.

  Raises:
    ValueError: a name that is missing or that no row of the table has.
  """
  left = dict(tensors)

  def take(name):
    if name not in left:
      raise ValueError(
        f'tensor {name!r} is missing among {len(tensors)}: expected the '
        'encoder of UMT5 or T5 v1.1'
      )
    return left.pop(name)

  found = [name for name in EMBEDDINGS if name in left]
  if found:
    left['shared.weight'] = left.pop(found[0])
    left.pop('encoder.embed_tokens.weight', None)
  params = {}
  for name, path, layout in TABLE:
    layouts.put(params, path.split('.'), layouts.FROM_TORCH[layout](take(name)))
  indices = [re.match(r'encoder\.block\.(\d+)\.', name) for name in left]
  layers = 1 + max((int(m[1]) for m in indices if m), default=0)
  biases = [BLOCK.format(i=i) + POSITION for i in range(layers)]
  rows = list(BLOCK_TABLE)
  if layers == 1 or sum(name in left for name in biases) > 1:
    rows.append((POSITION, 'position_bias', 'same'))
  else:
    params['position_bias'] = take(biases[0])
  for tail, path, layout in rows:
    convert = layouts.FROM_TORCH[layout]
    names = [BLOCK.format(i=i) + tail for i in range(layers)]
    stack = np.stack([convert(take(name)) for name in names])
    layouts.put(params, ['blocks', *path.split('.')], stack)
  if left:
    raise ValueError(
      f'tensor {min(left)!r} and {len(left) - 1} more: no row of the table has '
      'them; the file is of another model'
    )
  return params


def torch_names_from_params(params: dict) -> dict[str, np.ndarray]:
  """The parameter tree of `TextEncoder` -> published tensors by name."""
  arrays = {
    '.'.join(path): np.asarray(array) for path, array in layouts.leaves(params)
  }
  tensors = {}
  for name, path, layout in TABLE:
    tensors[name] = layouts.TO_TORCH[layout](arrays[path])
  for tail, path, layout in (*BLOCK_TABLE, (POSITION, 'position_bias', 'same')):
    convert = layouts.TO_TORCH[layout]
    for i, array in enumerate(arrays.get('blocks.' + path, ())):
      tensors[BLOCK.format(i=i) + tail] = convert(array)
  if 'position_bias' in arrays:
    tensors[BLOCK.format(i=0) + POSITION] = arrays['position_bias']
  return tensors
