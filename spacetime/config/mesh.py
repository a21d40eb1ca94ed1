"""The device mesh of an experiment, and the sizes that it has to divide."""

from jax.sharding import AbstractDevice, AbstractMesh, AxisType, Mesh

from spacetime import SettingError, sharding
from spacetime.config.experiment import Experiment
from spacetime.models.transformer import attention_plan
from spacetime.models.transformer.dit import DiTConfig
from spacetime.sharding import mesh as mesh_lib


def mesh(experiment: Experiment, *, devices=None) -> Mesh:
  """The mesh over all devices, or over `devices`, which may be described only.

  Raises:
    SettingError: the mesh does not divide the devices or the batch.
  """
  experiment.require('mesh', 'data', 'train')
  built = sharding.make_mesh(experiment.mesh, devices=devices)
  _check_batch(experiment, built)
  return built


def planned(
  experiment: Experiment, *, devices: int, platform: str, device_kind: str
) -> AbstractMesh:
  """The mesh over devices that need not exist, nor be described.

  Args:
    experiment: the experiment.
    devices: number of devices.
    platform: their platform, such as 'tpu'.
    device_kind: their kind, as JAX names it.

  Raises:
    SettingError: as `mesh`.
  """
  experiment.require('mesh', 'data', 'train')
  shape = mesh_lib.mesh_shape(experiment.mesh, devices=devices)
  mesh_lib.across_slices(shape, experiment.mesh.num_slices)
  device = AbstractDevice(device_kind, None, platform)
  built = AbstractMesh(
    shape,
    sharding.AXES,
    (AxisType.Auto,) * len(shape),
    abstract_device=device,
  )
  _check_batch(experiment, built)
  return built


def _check_batch(experiment: Experiment, mesh: Mesh | AbstractMesh) -> None:
  rows = sharding.num_shards('batch', mesh)
  batch = experiment.data.batch_size
  parts = experiment.train.accumulate
  if batch % (rows * parts):
    fits = -(-batch // (rows * parts)) * rows * parts
    raise SettingError(
      'data.batch_size',
      batch,
      f'a multiple of `mesh.data` x `mesh.fsdp` = {rows} times '
      f'`train.accumulate` = {parts}, such as {fits}',
      hint='or let `mesh.context` or `mesh.tensor` share a clip',
    )


def check_model(
  model: DiTConfig, tokens: int, mesh: Mesh | AbstractMesh
) -> None:
  """Checks that the mesh divides a transformer.

  Args:
    model: sizes of the transformer.
    tokens: tokens of a clip.
    mesh: mesh of the run.

  Raises:
    ValueError: heads, tokens or a hidden layer that the mesh does not divide,
      or an attention kernel that its devices lack or that has no ring.
  """
  attention_plan.choose(
    model.attention,
    model.context_attention,
    mesh=mesh,
    heads=model.heads,
    head_size=model.width // model.heads,
    dtype=model.dtype,
  )
  attention_plan.check_tokens(tokens, mesh)
  if model.mlp % sharding.num_shards('mlp', mesh):
    raise SettingError(
      'model.mlp',
      model.mlp,
      f'a multiple of `mesh.tensor`={mesh.shape["tensor"]}',
    )
