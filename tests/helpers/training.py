"""Short training runs: what they wrote, and runs as they were at a step."""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from spacetime import sharding
from spacetime.training import metrics


def losses(workdir) -> dict[int, float]:
  """The training loss by step."""
  lines = metrics.read_metrics(workdir)
  return {line['step']: line['loss'] for line in lines if 'loss' in line}


def leaves(tree) -> list[np.ndarray]:
  """Arrays of a tree, on the host."""
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def killed_after(workdir, step: int, copy: pathlib.Path) -> pathlib.Path:
  """A copy of a run as if killed after `step`, its newest checkpoint."""
  shutil.copytree(workdir, copy)
  for path in (copy / 'checkpoints').iterdir():
    if path.name.isdigit() and int(path.name) > step:
      shutil.rmtree(path)
  assert (copy / 'checkpoints' / str(step)).exists()
  return copy


def limit_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
  """Limits every mesh to the first devices.

  A program for eight emulated devices compiles twice as long as one for one.
  """
  make = sharding.make_mesh

  def limited(config, *, devices=None):
    return make(config, devices=devices or jax.devices()[:count])

  monkeypatch.setattr(sharding, 'make_mesh', limited)
