"""The two tables that place every array on the mesh.

LOGICAL_AXIS_RULES sends a logical axis name to mesh axes; PARAM_LOGICAL_AXES
sends a parameter's path to logical axis names. A name or a path without an
entry is an error: a silent default is how a tensor ends up whole on every chip.
"""

import math
import re

import jax
from jax.sharding import NamedSharding, PartitionSpec

# Logical axis -> mesh axes. None: not split.
LOGICAL_AXIS_RULES = {
  # activations
  'batch': ('data', 'fsdp'),
  'tokens': 'context',
  'heads': 'tensor',
  'mlp': 'tensor',
  'width': None,
  'frames': None,
  # parameters
  'layers': None,
  'embed': ('fsdp', 'context'),
  'heads_out': 'tensor',
  'mlp_out': 'tensor',
  'whole': None,
}

# Path of a parameter -> one logical axis per dimension. The first match
# counts. Stacked blocks carry a leading 'layers'. Adding a parameter means
# adding a row.
PARAM_LOGICAL_AXES = (
  # transformer
  (r'dit/blocks/.*/(q|k|v)/kernel', ('layers', 'embed', 'heads_out')),
  (r'dit/blocks/.*/(q|k|v)/bias', ('layers', 'heads_out')),
  (r'dit/blocks/.*/out/kernel', ('layers', 'heads_out', 'embed')),
  (r'dit/blocks/.*/norm_(q|k)/scale', ('layers', 'heads_out')),
  (r'dit/blocks/mlp_in/kernel', ('layers', 'embed', 'mlp_out')),
  (r'dit/blocks/mlp_in/bias', ('layers', 'mlp_out')),
  (r'dit/blocks/mlp_out/kernel', ('layers', 'mlp_out', 'embed')),
  (r'dit/blocks/.*/bias', ('layers', 'embed')),
  (r'dit/blocks/norm_cross/scale', ('layers', 'embed')),
  (r'dit/blocks/modulation', ('layers', 'whole', 'embed')),
  (r'dit/(time|text)_(in|out)/kernel', ('whole', 'embed')),
  (r'dit/time_modulation/kernel', ('embed', 'whole')),
  (r'dit/(patch|pos)_embed/kernel', ('whole', 'embed')),
  (r'dit/head/kernel', ('embed', 'whole')),
  (r'dit/head_modulation', ('whole', 'embed')),
  (r'dit/(head|time_modulation)/bias', ('whole',)),
  (r'dit/.*/bias', ('embed',)),
  # Low-rank pairs are small: whole on every device.
  (r'lora/.*', None),
  # text encoder
  (r'text/embed/embedding', ('whole', 'embed')),
  (r'text/blocks/(q|k|v|mlp_gate|mlp_in)/kernel', ('layers', 'embed', 'whole')),
  (r'text/blocks/(out|mlp_out)/kernel', ('layers', 'whole', 'embed')),
  (r'text/blocks/norm_.*/scale', ('layers', 'embed')),
  (r'text/norm_out/scale', ('embed',)),
  (r'text/(blocks/)?position_bias', None),
  # The autoencoder is small beside the transformer: whole on every device.
  (r'autoencoder/.*', None),
)


def spec(*names: str | None) -> PartitionSpec:
  """Logical axis names, one a dimension -> PartitionSpec.

  Raises:
    ValueError: a name that LOGICAL_AXIS_RULES does not know.
  """
  unknown = [n for n in names if n is not None and n not in LOGICAL_AXIS_RULES]
  if unknown:
    raise ValueError(
      f'logical axes {unknown}: not in LOGICAL_AXIS_RULES; known are '
      f'{sorted(LOGICAL_AXIS_RULES)}'
    )
  return PartitionSpec(
    *(None if n is None else LOGICAL_AXIS_RULES[n] for n in names)
  )


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Places an activation, one logical axis name a dimension.

  Outside of a mesh (`with jax.set_mesh(mesh):`) it only checks the names.

  Raises:
    ValueError: unknown names, or as many names as there are not dimensions.
  """
  if len(names) != x.ndim:
    raise ValueError(f'constrain{names}: expected {x.ndim} names')
  placed = spec(*names)
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, placed)


def num_shards(name: str, mesh) -> int:
  """Into how many parts a logical axis is split; 1 without a mesh.

  Raises:
    ValueError: a name that LOGICAL_AXIS_RULES does not know.
  """
  (axes,) = spec(name)
  if mesh.empty or axes is None:
    return 1
  axes = (axes,) if isinstance(axes, str) else axes
  return math.prod(mesh.shape.get(axis, 1) for axis in axes)


def divisible_axis(name: str, size: int, mesh) -> str | None:
  """The logical axis where the mesh divides the size, else None: whole."""
  return None if size % num_shards(name, mesh) else name


def param_spec(path: str, shape: tuple[int, ...]) -> PartitionSpec:
  """The placement of one parameter by its path, such as 'dit/head/kernel'.

  Raises:
    ValueError: no rule, or a rule of another number of dimensions.
  """
  for pattern, names in PARAM_LOGICAL_AXES:
    if re.fullmatch(pattern, path):
      if names is None:
        return PartitionSpec()
      if len(names) != len(shape):
        raise ValueError(
          f'{path} {shape}: its rule {pattern!r} names {len(names)} axes'
        )
      return spec(*names)
  raise ValueError(f'{path} {shape}: no rule in sharding.PARAM_LOGICAL_AXES')


def path_name(path) -> str:
  """Path of a leaf in a tree as text: 'dit/blocks/mlp_in/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def param_shardings(params, mesh: jax.sharding.Mesh):
  """NamedShardings for a tree of parameters (arrays or ShapeDtypeStructs).

  Raises:
    ValueError: a parameter without a rule, or one that the mesh does not
      divide.
  """

  def place(path, leaf):
    name = path_name(path)
    partition = param_spec(name, leaf.shape)
    for size, axes in zip(leaf.shape, partition, strict=False):
      axes = (axes,) if isinstance(axes, str) else (axes or ())
      ways = math.prod(mesh.shape[a] for a in axes)
      if size % ways:
        told = ' x '.join(f'mesh.{a}={mesh.shape[a]}' for a in axes)
        raise ValueError(
          f'{name} {leaf.shape}: {told} does not divide {size}; change the '
          'mesh or model.width, model.heads, model.mlp, text.d_model'
        )
    return NamedSharding(mesh, partition)

  return jax.tree_util.tree_map_with_path(place, params)


def state_shardings(state, params, mesh: jax.sharding.Mesh):
  """Shardings for params-like trees nested in optimizer state.

  A leaf whose path ends in a parameter's path and has its shape is placed as
  that parameter; anything else (counters, scales) is whole everywhere.
  """
  flat = jax.tree_util.tree_leaves_with_path(params)
  placed = jax.tree_util.tree_leaves(param_shardings(params, mesh))
  table = {
    path_name(path): (leaf.shape, sharding)
    for (path, leaf), sharding in zip(flat, placed, strict=True)
  }
  whole = NamedSharding(mesh, PartitionSpec())

  def place(path, leaf):
    parts = path_name(path).split('/')
    for i in range(len(parts)):
      shape, sharding = table.get('/'.join(parts[i:]), (None, None))
      if shape == leaf.shape:
        return sharding
    return whole

  return jax.tree_util.tree_map_with_path(place, state)
