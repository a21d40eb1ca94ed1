"""Finds a model by path or name and determines its kind."""

import dataclasses
import os
import pathlib
import re

from etils import epath

from spacetime.checkpoint import hub
from spacetime.checkpoint import paths as checkpoint_paths
from spacetime.checkpoint.interop import network_files
from spacetime.checkpoint.paths import CONFIG, STEPS, WEIGHTS
from spacetime.media import files

ASSETS = pathlib.Path(__file__).parents[1] / 'assets'


@dataclasses.dataclass(frozen=True)
class Located:
  """A model on this machine, or a run or weights folder in a bucket.

  Attributes:
    kind: 'run' (a work directory), 'weights' (a weights folder), 'diffusers' (a
      published folder), 'transformer' (a published transformer by itself, a
      folder or file), 'bundled', or 'hub' (a downloaded published folder).
    folder: path of the model.
  """

  kind: str
  folder: str

  @property
  def is_published(self) -> bool:
    """Whether the model is a folder in diffusers' format."""
    return self.kind in ('diffusers', 'hub')

  @property
  def pipeline(self) -> str | None:
    """The published folder that a transformer belongs to, if there is one."""
    parent = files.as_path(self.folder).parent
    inside = self.kind == 'transformer' and network_files.is_pipeline(parent)
    return os.fspath(parent) if inside else None


def locate(
  path: str | os.PathLike, *, beside: str | os.PathLike = ''
) -> Located:
  """Finds a model inside `beside`, by path, among the bundled models or, by the
  name of its repository, on the hub.

  Raises:
    ValueError: no such model.
  """
  path = os.fspath(path)
  if not path or re.fullmatch(r'\w+://[^/]*/*', path):
    raise ValueError(
      f'{path!r}: no such model; expected a name, a folder or gs://BUCKET/PATH'
    )
  inside = ''
  if beside and not files.is_url(path):
    inside = os.path.join(os.fspath(beside), path)
  for candidate in (inside, path):
    if candidate and files.exists(checkpoint_paths.absolute(candidate)):
      return _located(candidate)
  if files.is_url(path):
    raise ValueError(f'{path}: no such folder')
  bundled = os.path.join(ASSETS, path)
  if os.path.isdir(bundled):
    return Located('bundled', bundled)
  if hub.is_name(path):
    return Located('hub', os.fspath(hub.fetch(path)))
  raise ValueError(
    f'{path!r}: no such folder, and no model of that name is bundled'
  )


def _located(candidate: str) -> Located:
  """The model of a path; published weights of a bucket are copied first."""
  path = checkpoint_paths.absolute(candidate)
  if (
    not files.is_url(path)
    or (path / CONFIG).exists()
    and any((path / name).exists() for name in (WEIGHTS, STEPS))
  ):
    return Located(_kind(path), candidate)
  if (path.parent / network_files.INDEX).exists():  # one network of a folder
    local = files.mirror(path.parent) / path.name
  else:
    local = files.mirror(path)
  return Located(_kind(epath.Path(local)), os.fspath(local))


def _kind(path: epath.Path) -> str:
  if path.is_file():
    return 'transformer'
  if (path / network_files.INDEX).exists():
    return 'diffusers'
  if (path / WEIGHTS).exists():
    return 'weights'
  if (path / CONFIG).exists() and (path / STEPS).exists():
    return 'run'
  tensors = [*path.glob('*.safetensors'), *path.glob('*.index.json')]
  if (
    tensors
    or network_files.is_original(path)
    or network_files.is_pipeline(path.parent)
  ):
    return 'transformer'
  return 'run'
