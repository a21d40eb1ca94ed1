"""Renders a report of the dry run, as text or as one line of JSON."""

import dataclasses
import json

from spacetime.dryrun.report import Report
from spacetime.dryrun.roofline import Roofline
from spacetime.sharding.topology import Topology


def as_json(report: Report, slices: Topology, **labels: str) -> str:
  """Returns a report as one line of JSON.

  Args:
    report: the report.
    slices: the TPU slices that it is about.
    labels: further entries, such as the config and the program.
  """
  values = dataclasses.asdict(report) | {
    **labels,
    'topology': slices.raw,
    'num_slices': slices.slices,
    'chips': slices.chips,
    'devices': slices.devices,
    'fits': report.memory.fits,
    'total': report.memory.total,
    'collectives': [
      {'kind': kind, 'dtype': dtype, 'times': times, 'bytes': size}
      for (kind, dtype), (times, size) in report.collectives.items()
    ],
  }
  if report.roofline:
    seconds = _seconds(report.roofline)
    values['estimate'] = {
      'seconds': seconds,
      'mfu': tuple(report.roofline.mfu(s) for s in seconds),
    }
  return json.dumps(values)


def as_text(report: Report, slices: Topology) -> str:
  """Returns a report as lines of text."""
  device = 'chip' if slices.chip.devices == 1 else 'device (half a chip)'
  mesh = ', '.join(f'{axis} {n}' for axis, n in report.mesh.items())
  memory = report.memory
  rows = [
    *memory.rows.items(),
    ('total', memory.total),
    ('limit', memory.limit),
  ]
  lines = [
    f'{slices.slices} x {slices.raw}: {slices.chips} chips, {slices.devices} '
    'devices',
    f'mesh: {mesh}',
    f'lowered and compiled in {report.seconds:.0f} s',
    '',
    f'memory of one {device}, GiB',
    *(f'  {name:26} {size / 2**30:9.2f}' for name, size in rows),
    f'  {_verdict(report)}',
  ]
  if report.roofline:
    lines += ['', *_communication(report), '', *_estimates(report, slices)]
  return '\n'.join(lines)


def _seconds(roofline: Roofline) -> tuple[float, float]:
  """Returns seconds of a step with full overlap, and with none."""
  return roofline.overlapped, roofline.serial


def _verdict(report: Report) -> str:
  """Says whether the program fits, and what to change."""
  if report.memory.fits:
    return 'fits'
  over = (report.memory.total - report.memory.limit) / 2**30
  return f'does not fit by {over:.2f} GiB: {report.advice}'


def _communication(report: Report) -> list[str]:
  """Lists collectives, kernels, and activations gathered completely."""
  lines = ['collectives of one device in a step        times        GB']
  for (kind, dtype), (times, size) in report.collectives.items():
    lines.append(f'  {kind + " " + dtype:38} {times:7,} {size / 1e9:9.3f}')
  if not report.collectives:
    lines.append('  none')
  for name, times in report.kernels.items():
    lines.append(f'  kernel {name:31} {times:7,}')
  gathered = '; '.join(report.gathered) or 'none'
  return [*lines, f'activations gathered completely: {gathered}']


def _estimates(report: Report, slices: Topology) -> list[str]:
  """Lists FLOPs and the roofline estimate."""
  roofline, lines = report.roofline, []
  if report.flops:
    lines.append(f'model FLOPs (analytic): {report.flops / 1e15:,.2f} PFLOP')
  lines.append(
    f'estimate, each at its peak on {slices.chip.name}: matrix unit '
    f'{roofline.matrix:.3f} s, HBM {roofline.hbm:.3f} s, interconnect '
    f'{roofline.interconnect:.3f} s'
  )
  best, worst = _seconds(roofline)
  line = (
    f'estimate of a step: {best:.3f} s with full overlap, {worst:.3f} s with '
    'none'
  )
  if report.flops:
    line += f'; MFU at most {roofline.mfu(best):.0%}, {roofline.mfu(worst):.0%}'
  return [*lines, line]
