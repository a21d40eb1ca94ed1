"""The two tables that place every array on the mesh.

LOGICAL_AXIS_RULES sends a logical axis name to mesh axes; PARAM_LOGICAL_AXES
sends a parameter's path to logical axis names. A name or a path without an
entry is an error: a silent default would replicate a tensor on every chip.
"""

import math
import re

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from spacetime import SettingError

# Logical axis -> mesh axes. None: not sharded.
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
  'replicated': None,
}

# Path of a parameter -> one logical axis per dimension; the first match wins.
# Stacked blocks have a leading 'layers'. A new parameter needs a row.
PARAM_LOGICAL_AXES = (
  # transformer
  (
    r'dit/(control_)?blocks/.*/(q|k|v)(_image)?/kernel',
    ('layers', 'embed', 'heads_out'),
  ),
  (r'dit/(control_)?blocks/.*/(q|k|v)(_image)?/bias', ('layers', 'heads_out')),
  (r'dit/(control_)?blocks/.*/out/kernel', ('layers', 'heads_out', 'embed')),
  (
    r'dit/(control_)?blocks/.*/norm_(q|k)(_image)?/scale',
    ('layers', 'heads_out'),
  ),
  (
    r'dit/(control_)?blocks/(block/)?mlp_in/kernel',
    ('layers', 'embed', 'mlp_out'),
  ),
  (r'dit/(control_)?blocks/(block/)?mlp_in/bias', ('layers', 'mlp_out')),
  (
    r'dit/(control_)?blocks/(block/)?mlp_out/kernel',
    ('layers', 'mlp_out', 'embed'),
  ),
  (r'dit/(control_)?blocks/.*/bias', ('layers', 'embed')),
  (r'dit/control_blocks/hint/kernel', ('layers', 'replicated', 'embed')),
  (r'dit/(control_)?blocks/(block/)?norm_cross/scale', ('layers', 'embed')),
  (
    r'dit/(control_)?blocks/(block/)?modulation',
    ('layers', 'replicated', 'embed'),
  ),
  (r'dit/(time|text|end)_(in|out)/kernel', ('replicated', 'embed')),
  (r'dit/image_embed/(in|out)/kernel', ('replicated', 'embed')),
  (r'dit/image_embed/(norm_.*|in/bias|position)(/.*)?', None),
  (r'dit/control_(embed|in)/kernel', ('replicated', 'embed')),
  (r'dit/time_modulation/kernel', ('embed', 'replicated')),
  (r'dit/(patch|pos)_embed/kernel', ('replicated', 'embed')),
  (r'dit/head/kernel', ('embed', 'replicated')),
  (r'dit/head_modulation', ('replicated', 'embed')),
  (r'dit/(head|time_modulation)/bias', ('replicated',)),
  (r'dit/.*/bias', ('embed',)),
  # LoRA weights are small: replicated.
  (r'lora/.*', None),
  # text encoder
  (r'text/embed/embedding', ('replicated', 'embed')),
  (
    r'text/blocks/(q|k|v|mlp_gate|mlp_in)/kernel',
    ('layers', 'embed', 'replicated'),
  ),
  (r'text/blocks/(out|mlp_out)/kernel', ('layers', 'replicated', 'embed')),
  (r'text/blocks/norm_.*/scale', ('layers', 'embed')),
  (r'text/norm_out/scale', ('embed',)),
  (r'text/(blocks/)?position_bias', None),
  # image encoder
  (
    r'image/blocks/(q|k|v|mlp_in)/kernel',
    ('layers', 'embed', 'replicated'),
  ),
  (r'image/blocks/(out|mlp_out)/kernel', ('layers', 'replicated', 'embed')),
  (r'image/.*', None),
  # The autoencoder is small beside the transformer: replicated.
  (r'autoencoder/.*', None),
)


def spec(*names: str | None) -> PartitionSpec:
  """Returns the PartitionSpec of logical axis names, one per dimension.

  Raises:
    ValueError: a name that is not in LOGICAL_AXIS_RULES.
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
  """Constrains the sharding of an activation by logical axis names.

  Outside of a mesh (`with jax.set_mesh(mesh):`) it only checks the names. Rows
  of a batch that the mesh does not divide, such as the only clip of a call, are
  replicated.

  Raises:
    ValueError: an unknown name, or another number of names than dimensions.
  """
  if len(names) != x.ndim:
    raise ValueError(f'constrain{names}: expected {x.ndim} names')
  partition = spec(*names)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  if 'batch' in names:
    rows = x.shape[names.index('batch')]
    axis = divisible_axis('batch', rows, mesh)
    partition = spec(*(axis if n == 'batch' else n for n in names))
  return jax.lax.with_sharding_constraint(x, partition)


def num_shards(name: str, mesh: Mesh | AbstractMesh) -> int:
  """Returns the number of shards of a logical axis; 1 without a mesh.

  Raises:
    ValueError: a name that is not in LOGICAL_AXIS_RULES.
  """
  (axes,) = spec(name)
  if mesh.empty or axes is None:
    return 1
  axes = (axes,) if isinstance(axes, str) else axes
  return math.prod(mesh.shape.get(axis, 1) for axis in axes)


def divisible_axis(
  name: str, size: int, mesh: Mesh | AbstractMesh
) -> str | None:
  """Returns the logical axis if the mesh divides the size, else None."""
  return None if size % num_shards(name, mesh) else name


def param_spec(path: str, shape: tuple[int, ...]) -> PartitionSpec:
  """Returns the PartitionSpec of a parameter by path, like 'dit/head/kernel'.

  Raises:
    ValueError: no rule, or a rule for another number of dimensions.
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


def param_shardings(params, mesh: Mesh):
  """Returns NamedShardings for a tree of parameters (arrays or shapes).

  Raises:
    SettingError: a parameter that the mesh does not divide.
    ValueError: a parameter without a rule.
  """

  def sharding(path, leaf):
    """The sharding of one parameter, checked."""
    name = path_name(path)
    partition = param_spec(name, leaf.shape)
    for size, axes in zip(leaf.shape, partition, strict=False):
      axes = (axes,) if isinstance(axes, str) else (axes or ())
      if size % math.prod(mesh.shape[a] for a in axes):
        axis = max(axes, key=mesh.shape.__getitem__)
        product = ' x '.join(f'`mesh.{a}`' for a in axes)
        raise SettingError(
          f'mesh.{axis}',
          mesh.shape[axis],
          f'{product} to divide {size}, an axis of the parameter {name} '
          f'{leaf.shape}',
          hint='change `model.width`, `model.heads`, `model.mlp` or '
          '`text.d_model` otherwise',
        )
    return NamedSharding(mesh, partition)

  return jax.tree_util.tree_map_with_path(sharding, params)


def state_shardings(state, params, mesh: Mesh):
  """Returns NamedShardings for params-like trees nested in optimizer state.

  A leaf whose path ends in a parameter's path and that has its shape is sharded
  like that parameter; anything else (counters, scales) is replicated.
  """
  flat = jax.tree_util.tree_leaves_with_path(params)
  shardings = jax.tree_util.tree_leaves(param_shardings(params, mesh))
  table = {
    path_name(path): (leaf.shape, sharding)
    for (path, leaf), sharding in zip(flat, shardings, strict=True)
  }
  replicated = NamedSharding(mesh, PartitionSpec())

  def lookup(path, leaf):
    parts = path_name(path).split('/')
    for i in range(len(parts)):
      shape, sharding = table.get('/'.join(parts[i:]), (None, None))
      if shape == leaf.shape:
        return sharding
    return replicated

  return jax.tree_util.tree_map_with_path(lookup, state)
