"""The dry run: compiles for TPUs that are not there, and tells what follows.

  python -m spacetime compile --config=experiments/wan_t2v_14b.py:720p \\
    --topology=v5p-256 [--num_slices=2] [--config.mesh.context=8] \\
    [--program=sample] [--json]

The compiler is the TPUs' own (pip install 'spacetime-video[tpu-compile]'); a
plain CPU machine runs it in minutes. The program is the one that
spacetime train compiles, with the same options. Exit code 0: it fits. 1: it
does not, or an activation is gathered whole.
"""

import dataclasses
import json
import pathlib
import sys

import jax
from absl import flags
from ml_collections import config_flags

from spacetime.config import parse
from spacetime.dryrun import programs
from spacetime.dryrun import report as report_lib
from spacetime.dryrun import roofline as roofline_lib
from spacetime.sharding import topology

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'An experiment, such as experiments/wan_t2v_14b.py:720p.'
)
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'A slice as bought, v5p-256, or by its sides, v5p:4x4x8.'
)
_SLICES = flags.DEFINE_integer(
  'num_slices', 0, 'Slices of this kind; 0 takes mesh.num_slices.'
)
_PROGRAM = flags.DEFINE_enum(
  'program', 'train', programs.PROGRAMS, 'What to compile.'
)
_JSON = flags.DEFINE_bool('json', False, 'Tell it as one line of JSON.')
_HLO = flags.DEFINE_string(
  'hlo', None, "A file for the compiled program's text."
)


def main() -> None:
  """Flags -> report."""
  if _CONFIG.value is None or not _TOPOLOGY.value:
    raise ValueError('--config and --topology: expected both; see --help')
  try:
    experiment = parse.experiment(_CONFIG.value.copy_and_resolve_references())
  except OSError as e:  # of a file that is not there; found on first use
    raise ValueError(f'--config: {e}') from e
  experiment.require('mesh')
  slices = _SLICES.value or experiment.mesh.num_slices
  wanted = topology.parse(_TOPOLOGY.value, slices=slices)
  if slices > 1:
    experiment = parse.replace(experiment, {'mesh.num_slices': slices})
  # What is described is not to be looked for.
  jax.config.update('jax_platforms', 'cpu')
  dump = pathlib.Path(_HLO.value).write_text if _HLO.value else None
  report = report_lib.run(
    experiment,
    _PROGRAM.value,
    topology.devices(wanted),
    wanted.chip,
    dump=dump,
  )
  print(as_json(wanted, report) if _JSON.value else as_text(wanted, report))
  if not report.memory.fits or report.whole:
    sys.exit(1)


def as_json(wanted: topology.Topology, report: report_lib.Report) -> str:
  """The report in one line."""
  told = dataclasses.asdict(report) | {
    'config': config_flags.get_config_filename(flags.FLAGS['config']),
    'program': _PROGRAM.value,
    'topology': wanted.raw,
    'num_slices': wanted.slices,
    'chips': wanted.chips,
    'devices': wanted.devices,
    'fits': report.memory.fits,
    'total': report.memory.total,
    'collectives': [
      {'kind': kind, 'dtype': dtype, 'times': times, 'bytes': size}
      for (kind, dtype), (times, size) in report.collectives.items()
    ],
  }
  if report.roofline:
    told['estimate'] = dict(
      seconds=spans(report.roofline),
      mfu=tuple(report.roofline.mfu(s) for s in spans(report.roofline)),
    )
  return json.dumps(told)


def spans(roofline: roofline_lib.Roofline) -> tuple[float, float]:
  """Seconds of a step with all overlapped, and with no exchange hidden."""
  return roofline.overlapped, roofline.serial


def as_text(wanted: topology.Topology, report: report_lib.Report) -> str:
  """The report for people."""
  device = 'chip' if wanted.chip.devices == 1 else 'device (half a chip)'
  mesh = ', '.join(f'{axis} {n}' for axis, n in report.mesh.items())
  lines = [
    f'{wanted.slices} x {wanted.raw}: {wanted.chips} chips, {wanted.devices} '
    'devices',
    f'mesh: {mesh}',
    f'lowered and compiled in {report.seconds:.0f} s',
    '',
    f'memory of one {device}, GiB',
    *(f'  {name:26} {amount(size)}' for name, size in memory(report.memory)),
    f'  {"limit":26} {amount(report.memory.limit)}',
    f'  {verdict(report)}',
  ]
  if report.roofline:
    lines += ['', *exchanged(report), '', *timed(report, wanted)]
  return '\n'.join(lines)


def amount(size: float) -> str:
  """Bytes in GiB, in a column."""
  return f'{size / 2**30:9.2f}'


def memory(found: roofline_lib.Memory) -> list[tuple[str, float]]:
  """Rows of the table, their sum last."""
  return [*found.rows.items(), ('together', found.total)]


def verdict(report: report_lib.Report) -> str:
  """Whether it fits, and what to change."""
  if report.memory.fits:
    return 'fits'
  over = (report.memory.total - report.memory.limit) / 2**30
  return f'does not fit by {over:.2f} GiB: {report.advice}'


def exchanged(report: report_lib.Report) -> list[str]:
  """Collectives, kernels, and activations that became whole."""
  lines = ['exchanges of one device in a step        times        GB']
  for (kind, dtype), (times, size) in report.collectives.items():
    lines.append(f'  {kind + " " + dtype:36} {times:7,} {size / 1e9:9.3f}')
  if not report.collectives:
    lines.append('  none')
  for name, times in report.kernels.items():
    lines.append(f'  kernel {name:29} {times:7,}')
  lines.append(
    'activations gathered whole: ' + ('; '.join(report.whole) or 'none')
  )
  return lines


def timed(report: report_lib.Report, wanted: topology.Topology) -> list[str]:
  """FLOPs, and the roofline."""
  found, lines = report.roofline, []
  if report.flops:
    lines.append(f'model FLOPs (analytic): {report.flops / 1e15:,.2f} PFLOP')
  lines.append(
    f'estimate, each at its peak on {wanted.chip.name}: matrix unit '
    f'{found.matrix:.3f} s, HBM {found.hbm:.3f} s, interconnect '
    f'{found.interconnect:.3f} s'
  )
  best, worst = spans(found)
  line = f'estimate of a step: {best:.3f} s overlapped, {worst:.3f} s not'
  if report.flops:
    line += f'; MFU at most {found.mfu(best):.0%}, {found.mfu(worst):.0%}'
  return [*lines, line]
