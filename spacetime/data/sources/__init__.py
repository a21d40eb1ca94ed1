"""Data sources: one module each, named as `data.name` of a config.

A module implements the protocol `Source` of data/splits.py. Adding a source
means adding a module here; nothing else compares names of sources.
"""

import importlib
import pkgutil
import types


def names() -> tuple[str, ...]:
  """Names of the sources, sorted."""
  return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def get(name: str) -> types.ModuleType:
  """The module of a source, which implements data/splits.py's Source."""
  return importlib.import_module(f'{__name__}.{name}')
