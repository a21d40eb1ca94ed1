"""Renders a report of the dry run, as text or as one line of JSON."""

import dataclasses
import json

from spacetime.dryrun.report import Report
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
    'fits': report.fits,
    'total': report.memory.total,
    'collectives': [
      {'kind': kind, 'dtype': dtype, 'times': times, 'bytes': size}
      for (kind, dtype), (times, size) in report.collectives.items()
    ],
  }
  if report.roofline:
    values['estimate'] = {
      'seconds': report.roofline.expected,
      'mfu': report.roofline.mfu,
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
    f'lowered and compiled in {report.seconds:.0f} s by '
    + ', '.join(f'{name} {text}' for name, text in report.versions.items()),
    '',
    f'memory of one {device}, GiB',
    *(f'  {name:26} {size / 2**30:9.2f}' for name, size in rows),
    *_held_out(report),
    f'  {_verdict(report)}',
  ]
  if report.roofline:
    lines += ['', *_communication(report), '', *_estimates(report, slices)]
  return '\n'.join(lines)


def _held_out(report: Report) -> list[str]:
  """Lists the total while the held-out loss runs between two steps."""
  if report.held_out is None:
    return []
  total = report.held_out.total / 2**30
  return [f'  {"total of the held-out loss":26} {total:9.2f}']


def _verdict(report: Report) -> str:
  """Says whether the program fits, and what to change."""
  if report.memory.fits and report.held_out and not report.held_out.fits:
    total = report.held_out.total / 2**30
    return f'does not fit: {report.advice} ({total:.2f} GiB)'
  if report.memory.fits:
    return 'fits'
  over = (report.memory.total - report.memory.limit) / 2**30
  verdict = f'does not fit by {over:.2f} GiB' if over > 0 else 'does not fit'
  if report.memory.refusal:
    verdict += f' (the compiler: {report.memory.refusal})'
  return f'{verdict}: {report.advice}'


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
    f'each unit of {slices.chip.name} at its peak: matrix unit '
    f'{roofline.matrix:.3f} s, HBM {roofline.hbm:.3f} s, interconnect '
    f'{roofline.interconnect:.3f} s'
  )
  if not report.flops:
    return [*lines, 'FLOPs are not counted: no estimate of the duration']
  return [
    *lines,
    f'expected: {roofline.expected:.3g} s, MFU {roofline.mfu:.0%}; '
    f'{roofline.basis}',
  ]
