"""Shapes of parameters, kept by earlier commands so as not to trace again.

The shapes of a network come from tracing its initialization, which takes longer
than reading the parameters of a small model.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging

from spacetime.media import files

SOURCES = pathlib.Path(__file__).parents[1]


@functools.cache
def code_version() -> str:
  """Hash of this package's sources and the versions of JAX and Flax: what is
  cached under one was made by the same code."""
  flax = importlib.metadata.version('flax')
  digest = hashlib.sha256(f'{jax.__version__} {flax}'.encode())
  for path in sorted(SOURCES.rglob('*.py')):
    digest.update(f'{path.relative_to(SOURCES)}\0'.encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()


def shapes(init: Callable, settings, folder: os.PathLike | None = None) -> dict:
  """Shapes of what `init` returns: nested dicts of jax.ShapeDtypeStruct.

  Args:
    init: key -> nested dicts of arrays, made from the settings alone.
    settings: the settings; repr() tells them apart.
    folder: folder of cached shapes; None keeps none.
  """
  path = None
  if folder is not None:
    text = repr((settings, code_version()))
    name = hashlib.sha256(text.encode()).hexdigest()
    path = files.as_path(folder) / f'{name}.shapes.json'
    try:
      return _from_json(json.loads(path.read_text()))
    except FileNotFoundError:
      pass
    except (OSError, ValueError, TypeError) as e:
      logging.info('%s: not read, traced anew: %s', path, e)
  traced = jax.eval_shape(init, jax.random.key(0))
  if path is not None:
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      with files.atomic_write(path) as out:
        out.write_text(json.dumps(_to_json(traced)))
    except OSError as e:
      logging.info('%s: not saved: %s', path, e)
  return traced


def _to_json(tree):
  """Dicts of [shape, dtype]."""
  if isinstance(tree, dict):
    return {name: _to_json(part) for name, part in tree.items()}
  return [list(tree.shape), str(tree.dtype)]


def _from_json(tree):
  if isinstance(tree, dict):
    return {name: _from_json(part) for name, part in tree.items()}
  shape, dtype = tree
  return jax.ShapeDtypeStruct(tuple(map(int, shape)), jnp.dtype(dtype))
