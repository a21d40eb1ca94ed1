"""Report of a program compiled for TPUs that do not exist here."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import jax

from spacetime import sharding
from spacetime.config import networks, parse
from spacetime.config.experiment import Experiment
from spacetime.dryrun import calibration, hlo, programs
from spacetime.dryrun import roofline as roofline_lib
from spacetime.sharding import chips, topology

TEMPORARIES = 'activations, temporaries'
ON_CHIP = (
  'a kernel needs more memory beside the units of the chip than there is: set '
  "model.attention='xla', or use another generation of TPU"
)


@dataclasses.dataclass(frozen=True)
class Report:
  """Memory, communication and time of a program.

  Attributes:
    mesh: devices along each axis.
    memory: memory of one device.
    advice: what to change so that it fits; '' if it fits.
    seconds: duration of lowering and compiling.
    collectives: (kind, dtype) -> (times, bytes) in a step.
    gathered: activations that a device gathers completely, as text.
    kernels: number of runs of each Pallas kernel.
    flops: model FLOPs of all devices.
    roofline: None if compilation ran out of memory.
    versions: of the packages that compiled it.
    held_out: memory of the held-out loss, which runs between training steps;
      None where there is none.
  """

  mesh: dict[str, int]
  memory: roofline_lib.Memory
  advice: str
  seconds: float
  collectives: dict = dataclasses.field(default_factory=dict)
  gathered: tuple[str, ...] = ()
  kernels: dict[str, int] = dataclasses.field(default_factory=dict)
  flops: float = 0.0
  roofline: roofline_lib.Roofline | None = None
  versions: dict[str, str] = dataclasses.field(default_factory=chips.versions)
  held_out: roofline_lib.Memory | None = None

  @property
  def fits(self) -> bool:
    """Whether the program fits, and the held-out loss too."""
    return self.memory.fits and (self.held_out is None or self.held_out.fits)

  @property
  def passes(self) -> bool:
    """Whether it fits, and gathers no activation completely."""
    return self.fits and not self.gathered


def dry_run(
  experiment: Experiment,
  program: str,
  slices: topology.Topology,
  *,
  dump: Callable[[str], object] | None = None,
) -> Report:
  """Compiles a program for TPU slices; see `compile_program`.

  With a training step that fits, the held-out loss is compiled too.
  """
  if slices.slices > 1:
    experiment = parse.replace(experiment, {'mesh.num_slices': slices.slices})
  devices = topology.devices(slices)
  report = compile_program(experiment, program, devices, slices.chip, dump=dump)
  evaluates = program == 'train' and experiment.train.evaluate_every
  if not evaluates or not report.memory.fits:
    return report
  held_out = compile_program(experiment, 'held_out', devices, slices.chip)
  advice = 'the held-out loss needs more: set train.evaluate_every=0'
  return dataclasses.replace(
    report,
    held_out=held_out.memory,
    advice=report.advice if held_out.memory.fits else advice,
    seconds=report.seconds + held_out.seconds,
  )


def compile_program(
  experiment: Experiment,
  program: str,
  devices: Sequence[jax.Device],
  chip: chips.Chip,
  *,
  dump: Callable[[str], object] | None = None,
) -> Report:
  """Compiles a program and analyses the result.

  Args:
    experiment, program, devices: see programs.lower.
    chip: generation of the devices.
    dump: called with the compiled text.

  Returns:
    a Report, also of a program that runs out of memory.

  Raises:
    ValueError: see programs.lower; or a program that the compiler refuses for
      another reason.
  """
  start = time.monotonic()
  remat = experiment.model.remat if program == 'train' else None
  lowered = programs.lower(experiment, program, devices)
  mesh = dict(lowered.mesh.shape)
  parts = part_sizes(lowered)
  try:
    compiled = lowered.lowered.compile(compiler_options=lowered.options)
  except jax.errors.JaxRuntimeError as e:
    refusal = out_of_memory(e, chip)
    memory = memory_refused(refusal, parts, chip.hbm)
    return Report(
      mesh=mesh,
      memory=memory,
      advice=ON_CHIP if refusal.on_chip else advice(memory, lowered, remat),
      seconds=time.monotonic() - start,
    )
  seconds = time.monotonic() - start
  memory = memory_of(
    compiled.memory_analysis(),
    parts,
    chip.hbm,
    beside=('parameters', 'optimizer') if program == 'held_out' else (),
  )
  text = compiled.as_text()
  if dump:
    dump(text)
  compiled_program = hlo.Program(text)
  collectives = compiled_program.collectives(mesh)
  return Report(
    mesh=mesh,
    memory=memory,
    advice=advice(memory, lowered, remat),
    seconds=seconds,
    collectives=roofline_lib.per_kind(collectives),
    gathered=gathered_activations(lowered, experiment, collectives),
    kernels=compiled_program.kernels(),
    flops=lowered.flops,
    roofline=roofline(lowered, program, compiled_program, collectives, chip),
  )


def out_of_memory(
  error: jax.errors.JaxRuntimeError, chip: chips.Chip
) -> roofline_lib.OutOfMemory:
  """Returns the compiler's refusal of a program for its size.

  Raises:
    ValueError: it refuses the program for another reason.
  """
  refusal = roofline_lib.parse_out_of_memory(str(error))
  if refusal:
    return refusal
  reason = str(error).strip().partition('\n')[0][:300]
  raise ValueError(
    f'the compiler of {chip.name} refuses the program: {reason}; set '
    'SPACETIME_TRACEBACK=1 for the complete message'
  ) from error


def part_sizes(lowered: programs.Lowered) -> dict[str, float]:
  """Returns bytes on one device of the program's arguments, by name."""
  parts = {name: bytes_per_device(x) for name, x in lowered.parts.items()}
  if lowered.waiting:
    parts['batches in flight'] = lowered.waiting * parts['batch']
  return {name: size for name, size in parts.items() if size}


def advice(
  memory: roofline_lib.Memory, lowered: programs.Lowered, remat: str | None
) -> str:
  """Returns what to change so that the program fits; '' if it does."""
  if memory.fits:
    return ''
  if lowered.single and lowered.rows <= 1:
    return lowered.single
  return roofline_lib.advice(
    memory,
    mesh=dict(lowered.mesh.shape),
    rows=lowered.rows,
    fewer=lowered.fewer,
    remat=remat,
    sharded=('parameters', 'average', 'optimizer'),
  )


def bytes_per_device(tree) -> float:
  """Returns the bytes of a tree of sharded shapes on one device."""
  return float(
    sum(
      math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
    )
  )


def memory_refused(
  refusal: roofline_lib.OutOfMemory, parts: Mapping[str, float], limit: float
) -> roofline_lib.Memory:
  """Returns the memory of a program that the compiler refuses for its size.

  Args:
    refusal: its message.
    parts: name of an argument -> bytes on one device.
    limit: bytes that a program may use, where the message does not say it.
  """
  rows = dict(parts)
  if refusal.temporaries is not None:
    rows[TEMPORARIES] = refusal.temporaries
  elif refusal.used is not None:
    rows[TEMPORARIES] = max(refusal.used - sum(parts.values()), 0.0)
  return roofline_lib.Memory(rows, refusal.limit or limit, refusal.message)


def memory_of(
  analysis,
  parts: Mapping[str, float],
  limit: float,
  *,
  beside: Sequence[str] = (),
) -> roofline_lib.Memory:
  """Returns the compiler's memory analysis, with the arguments by name.

  Args:
    analysis: result of jax.stages.Compiled.memory_analysis().
    parts: name of an argument -> bytes on one device.
    limit: bytes that a program may use.
    beside: names of parts that are no arguments but lie on the device too.
  """
  others = ('batches in flight', *beside)
  arguments = sum(size for name, size in parts.items() if name not in others)
  layout = analysis.argument_size_in_bytes - arguments
  rows = dict(parts) | {
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


def gathered_activations(
  lowered: programs.Lowered,
  experiment: Experiment,
  collectives: Sequence[hlo.Collective],
) -> tuple[str, ...]:
  """Returns source and shapes of activations that are gathered completely."""
  model, tensor = experiment.model, lowered.mesh.shape['tensor']
  params = lowered.parts['parameters']
  if 'dit' not in params:  # the tables do not shard an autoencoder
    return ()
  shapes = {
    '/' + sharding.path_name(path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  nets = networks.networks(experiment)
  tokens = networks.clip_geometry(experiment.data, nets).tokens
  gathered = roofline_lib.gathered_activations(
    collectives,
    elements=tokens * model.width // tensor,
    weights=roofline_lib.layer_weights(
      shapes, layers=model.layers, tensor=tensor
    ),
  )
  return tuple(
    f'{c.scope} {[(a.dtype, a.shape) for a in c.arrays]} x {c.count}'
    for c in gathered
  )


def roofline(
  lowered: programs.Lowered,
  name: str,
  program: hlo.Program,
  collectives: Sequence[hlo.Collective],
  chip: chips.Chip,
) -> roofline_lib.Roofline:
  """Returns the roofline estimate of a compiled program.

  Args:
    lowered: the program before compilation.
    name: one of programs.PROGRAMS.
    program: the compiled program.
    collectives: its collectives.
    chip: generation of the devices.
  """
  interconnect = 0.0
  for c in collectives:
    coordinates, dcn = _group(lowered.mesh, c.axes)
    interconnect += roofline_lib.collective_seconds(
      c, chip, axes=roofline_lib.torus_axes(coordinates), dcn=dcn
    )
  peak = chip.flops * lowered.mesh.size
  measured = calibration.efficiency(chip.name, name)
  return roofline_lib.Roofline(
    matrix=(lowered.dense + lowered.attention) / peak,
    measured=measured.seconds(lowered.dense, lowered.attention, peak=peak),
    hbm=program.memory_traffic() / chip.hbm_bandwidth,
    interconnect=interconnect,
    flops=lowered.flops / lowered.mesh.size,
    peak=chip.flops,
    basis=measured.basis if lowered.flops else '',
  )


def _group(
  mesh: jax.sharding.Mesh, axes: tuple[str, ...]
) -> tuple[list[Sequence[int]], bool]:
  """Returns the coordinates of a group of devices, and whether it crosses
  slices. Axes that the mesh does not have count as one axis of the torus."""
  index = tuple(slice(None) if a in axes else 0 for a in mesh.axis_names)
  along = mesh.devices[index]
  group = list(along.flat) if hasattr(along, 'flat') else [along]
  slices = {getattr(device, 'slice_index', 0) for device in group}
  coordinates = [getattr(device, 'coords', (0,)) for device in group]
  return coordinates, len(slices) > 1
