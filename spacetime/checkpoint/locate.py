"""Finds a model by path or name."""

import dataclasses
import os
import pathlib

from etils import epath

from spacetime.checkpoint import hub
from spacetime.checkpoint.interop import folders
from spacetime.checkpoint.paths import WEIGHTS

ASSETS = pathlib.Path(__file__).parents[1] / 'assets'


@dataclasses.dataclass(frozen=True)
class Located:
  """A model on this machine or in a bucket.

  Attributes:
    kind: 'run' (a work directory), 'weights' (a weights folder), 'diffusers'
      (a published folder), 'bundled', or 'hub' (a downloaded published one).
    folder: where it is.
  """

  kind: str
  folder: str


def locate(path: str, *, beside: str | os.PathLike = '') -> Located:
  """Finds a folder inside `beside`, by path, among the bundled models or, by
  the name of its repository, on the hub.

  Raises:
    ValueError: there is none.
  """
  inside = os.path.join(os.fspath(beside), path) if beside else ''
  for candidate in (inside, path):
    if candidate and epath.Path(candidate).is_dir():  # of a bucket too
      if folders.is_pipeline(candidate):
        return Located('diffusers', candidate)
      weights = (epath.Path(candidate) / WEIGHTS).exists()
      return Located('weights' if weights else 'run', candidate)
  bundled = os.path.join(ASSETS, path)
  if os.path.isdir(bundled):
    return Located('bundled', bundled)
  if hub.is_name(path):
    return Located('hub', os.fspath(hub.fetch(path)))
  raise ValueError(
    f'{path!r}: no such folder, and no model of that name is bundled; change '
    '`checkpoint` or autoencoder.weights'
  )
