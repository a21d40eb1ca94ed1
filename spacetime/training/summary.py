"""The first and the last lines that a run prints."""

import math

import jax

from spacetime.training import loop, setup


def heading(run: setup.Setup, workdir, *, start: int, rates: loop.Rates) -> str:
  """Returns the first lines of a run: parameters, devices, batch and output.

  Args:
    run: a checked run.
    workdir: output folder.
    start: finished steps.
    rates: see tasks.rates.
  """
  trained = _count(run.shapes.params)
  devices = run.mesh.devices
  kind = devices.flat[0].device_kind
  axes = ', '.join(f'{a} {n}' for a, n in run.mesh.shape.items() if n > 1)
  data, train = run.experiment.data, run.experiment.train
  if run.patchify is not None:
    batch = f'{data.batch_size} rows of clips'
  elif len(data.shapes) > 1:
    batch = 'clips of one size'
  else:
    batch = f'{round(rates.clips)} clips'
  if rates.tokens:
    most = 'at most ' if len(data.shapes) > 1 and run.patchify is None else ''
    batch += f', {most}{rates.tokens:,} tokens'
  lines = [
    f'parameters  {trained:,} trained, in {run.experiment.stage!r}',
    f'devices     {devices.size} x {kind}' + (f' ({axes})' if axes else ''),
    f'batch       {batch}',
    f'steps       {start:,} of {train.steps:,} done',
    f'output      {workdir}',
  ]
  return '\n'.join(lines)


def ending(run: setup.Setup, workdir, *, step: int) -> str:
  """Returns the last line of a run: the command that uses its result."""
  if step < run.experiment.train.steps:
    return f'stopped at step {step:,}; the same command resumes'
  if run.nets is None:
    return (
      f'export it: spacetime export --checkpoint={workdir} --out=AUTOENCODER'
    )
  if run.nets.lora.rank or run.nets.text_kind == 'frozen':
    merged = ' --lora=merged' if run.nets.lora.rank else ''
    return (
      f'export it: spacetime export --checkpoint={workdir}{merged} '
      '--out=MODEL; then: spacetime sample --checkpoint=MODEL '
      '--prompt="..." --out=clip.mp4'
    )
  return (
    f'sample from it: spacetime sample --checkpoint={workdir} '
    '--prompt="a red 3 moves to the right" --out=clip.mp4'
  )


def _count(params) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
