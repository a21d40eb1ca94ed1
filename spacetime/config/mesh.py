"""The mesh of a config, and what it has to divide."""

import jax

from spacetime import sharding
from spacetime.config import parse
from spacetime.config.parse import section, unpack
from spacetime.models.transformer import attention_plan
from spacetime.models.transformer.dit import DiTConfig


def mesh(config, *, devices=None) -> jax.sharding.Mesh:
  """The mesh over all devices, or over those given, which need not be there.

  Raises:
    ValueError: it does not divide the devices or the batch.
  """
  values = unpack(section(config, 'mesh'), sharding.MeshConfig, 'mesh')
  made = sharding.make_mesh(values, devices=devices)
  rows = sharding.num_shards('batch', made)
  batch = parse.data(config).batch_size
  parts = parse.train(config).accumulate
  if batch % (rows * parts):
    fits = -(-batch // (rows * parts)) * rows * parts
    raise ValueError(
      f'data.batch_size={batch}: mesh.data x mesh.fsdp = {rows} and '
      f'train.accumulate={parts} do not divide it; the next that fits is '
      f'{fits}, or let mesh.context or mesh.tensor share a clip'
    )
  return made


def check_model(model: DiTConfig, tokens: int, made: jax.sharding.Mesh) -> None:
  """Refuses a transformer that the mesh does not divide.

  Args:
    model: its sizes.
    tokens: of a clip.
    made: the mesh.

  Raises:
    ValueError: heads, tokens or a hidden layer that it does not divide, or a
      kernel of attention that its devices have not, or that has no ring.
  """
  attention_plan.choose(
    model.attention,
    model.context_attention,
    mesh=made,
    heads=model.heads,
    head_size=model.width // model.heads,
    dtype=model.dtype,
  )
  attention_plan.check_tokens(tokens, made)
  if model.mlp % sharding.num_shards('mlp', made):
    raise ValueError(
      f'model.mlp={model.mlp}: mesh.tensor={made.shape["tensor"]} does not '
      'divide it; change mesh.tensor'
    )
