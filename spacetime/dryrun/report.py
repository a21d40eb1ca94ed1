"""A program compiled for devices that are not there, and what follows."""

import dataclasses
import math
import time

import jax

from spacetime import sharding
from spacetime.config import networks
from spacetime.config.experiment import Experiment
from spacetime.dryrun import hlo, programs
from spacetime.dryrun import roofline as roofline_lib
from spacetime.sharding import chips

TEMPORARIES = 'activations, temporaries'


@dataclasses.dataclass(frozen=True)
class Report:
  """What the compiler says of a program.

  Attributes:
    mesh: devices along each axis.
    memory: of one device.
    advice: what to change; '' where it fits.
    seconds: of lowering and compiling.
    collectives: (kind, dtype) -> (times, bytes) in a step.
    whole: where an activation is gathered whole.
    kernels: times that each Pallas kernel runs.
    flops: model FLOPs, of all devices.
    roofline: None where nothing was compiled.
  """

  mesh: dict[str, int]
  memory: roofline_lib.Memory
  advice: str
  seconds: float
  collectives: dict = dataclasses.field(default_factory=dict)
  whole: tuple[str, ...] = ()
  kernels: dict[str, int] = dataclasses.field(default_factory=dict)
  flops: float = 0.0
  roofline: roofline_lib.Roofline | None = None


def run(
  experiment: Experiment,
  program: str,
  devices,
  chip: chips.Chip,
  *,
  dump=None,
):
  """Compiles a program and reads what came of it.

  Args:
    experiment, program, devices: see programs.lower.
    chip: the devices' generation.
    dump: called with the compiled text, if given.

  Returns:
    a Report; that memory ran out is one too.
  """
  began = time.monotonic()
  made = programs.lower(experiment, program, devices)
  mesh, model = dict(made.mesh.shape), experiment.model
  parts = {name: bytes_of(tree) for name, tree in made.parts.items()}
  parts = {name: size for name, size in parts.items() if size}

  def told(memory: roofline_lib.Memory) -> str:
    if memory.fits:
      return ''
    return roofline_lib.advice(
      memory,
      mesh=mesh,
      rows=made.rows,
      remat=model.remat,
      moved=('parameters', 'average', 'optimizer'),
    )

  try:
    compiled = made.lowered.compile(compiler_options=made.options)
  except jax.errors.JaxRuntimeError as e:
    found = roofline_lib.refused(str(e))
    if not found:
      told_by_it = str(e).strip().partition('\n')[0][:300]
      raise ValueError(
        f'the compiler of {chip.name} refuses the program: {told_by_it}; the '
        'whole with SPACETIME_TRACEBACK=1'
      ) from e
    used, limit = found
    rest = max(used - sum(parts.values()), 0.0)
    memory = roofline_lib.Memory(parts | {TEMPORARIES: rest}, limit, used)
    return Report(mesh, memory, told(memory), time.monotonic() - began)
  seconds = time.monotonic() - began
  memory = memory_of(compiled.memory_analysis(), parts, chip.hbm)
  text = compiled.as_text()
  if dump:
    dump(text)
  found = hlo.Program(text)
  collectives = found.collectives(mesh)
  return Report(
    mesh,
    memory,
    told(memory),
    seconds,
    roofline_lib.per_kind(collectives),
    whole(made, experiment, collectives),
    found.kernels(),
    made.flops,
    roofline(made, found, collectives, chip),
  )


def bytes_of(tree) -> float:
  """On one device."""
  return float(
    sum(
      math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
    )
  )


def memory_of(analysis, parts: dict, limit: float) -> roofline_lib.Memory:
  """The compiler's analysis, with the arguments by their names."""
  layout = analysis.argument_size_in_bytes - sum(parts.values())
  rows = parts | {
    'layout of these': max(float(layout), 0.0),
    TEMPORARIES: float(analysis.temp_size_in_bytes),
    'results': float(
      max(analysis.output_size_in_bytes - analysis.alias_size_in_bytes, 0)
    ),
    'program': float(analysis.generated_code_size_in_bytes),
  }
  return roofline_lib.Memory(
    {name: size for name, size in rows.items() if size >= 2**20}, limit
  )


def whole(made: programs.Lowered, experiment, collectives) -> tuple[str, ...]:
  """Where activations are gathered whole, with their shapes."""
  model, tensor = experiment.model, made.mesh.shape['tensor']
  params = made.parts['parameters']
  if 'dit' not in params:  # an autoencoder's activations follow no table
    return ()
  shapes = {
    '/' + sharding.path_name(path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  nets = networks.networks(experiment)
  tokens = networks.clip_geometry(experiment.data, nets).tokens
  found = roofline_lib.whole_activations(
    collectives,
    elements=tokens * model.width // tensor,
    weights=roofline_lib.layer_weights(
      shapes, layers=model.layers, tensor=tensor
    ),
  )
  return tuple(
    f'{c.scope} {[(a.dtype, a.shape) for a in c.arrays]} x {c.count}'
    for c in found
  )


def roofline(made: programs.Lowered, found: hlo.Program, collectives, chip):
  """See estimate.Roofline."""
  exchanged = 0.0
  for c in collectives:
    coordinates, dcn = _group(made.mesh, c.axes)
    exchanged += roofline_lib.exchange_seconds(
      c, chip, axes=roofline_lib.sides(coordinates), dcn=dcn
    )
  count = made.mesh.size
  return roofline_lib.Roofline(
    matrix=made.executed / count / chip.flops,
    hbm=found.memory_traffic() / chip.hbm_bandwidth,
    interconnect=exchanged,
    flops=made.flops / count,
    peak=chip.flops,
  )


def _group(mesh, axes: tuple[str, ...]):
  """(coordinates of the devices along these axes, whether of many slices);
  axes that the mesh does not know are taken for one of the torus."""
  index = tuple(slice(None) if a in axes else 0 for a in mesh.axis_names)
  along = mesh.devices[index]
  group = list(along.flat) if hasattr(along, 'flat') else [along]
  slices = {getattr(device, 'slice_index', 0) for device in group}
  coordinates = [getattr(device, 'coords', (0,)) for device in group]
  return coordinates, len(slices) > 1
