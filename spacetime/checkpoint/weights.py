"""Writes weights directories and computes fingerprints of weights."""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from spacetime.checkpoint import finite, paths, trees
from spacetime.checkpoint.configs import config_bytes
from spacetime.checkpoint.paths import CONFIG, STEPS, TOKENIZER, WEIGHTS, Path
from spacetime.media import files


def save_weights(
  directory: Path,
  params: Mapping[str, Any],
  *,
  config: Mapping[str, Any],
  tokenizer: bytes | None = None,
) -> None:
  """Writes a weights directory, atomically.

  Args:
    directory: directory to create; it may exist only if empty or equal.
    params: nested dicts of arrays, all of which this process can read.
    config: plain values, nested.
    tokenizer: sentencepiece model.

  Raises:
    ValueError: the directory holds something else, or cannot be written; or
      values that are not finite.
  """
  directory = pathlib.Path(os.path.abspath(directory))
  files.check_writable(directory.parent)
  contents = {CONFIG: config_bytes(config)}
  if tokenizer is not None:
    contents[TOKENIZER] = tokenizer
  arrays = {
    key: np.ascontiguousarray(jax.device_get(value)).reshape(value.shape)
    for key, value in trees.flat(params).items()
  }
  for key, array in arrays.items():
    finite.check_cast(array, f'{directory}: {key}')
  contents[WEIGHTS] = safetensors.numpy.save(arrays)
  if directory.is_dir() and _holds(directory, contents):
    return
  if directory.exists() and (
    not directory.is_dir() or any(directory.iterdir())
  ):
    raise ValueError(f'{directory} exists and holds something else')
  with files.atomic_folder(directory) as temporary:
    for name, data in contents.items():
      (temporary / name).write_bytes(data)


def weights_hash(directory: Path, *, step: int | None = None) -> str:
  """Fingerprint of the arrays, 16 hex digits.

  It is the start of the SHA-256 of weights.safetensors or, in a work directory,
  of the step's manifest, which differs between any two saves.
  """
  path = paths.check_directory(directory)
  if (path / WEIGHTS).exists():
    digest = hashlib.sha256()
    with (path / WEIGHTS).open('rb') as f:
      while block := f.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()[:16]
  path = path / STEPS
  step = path / str(paths.find_step(path, step))
  return hashlib.sha256(
    (step / '_CHECKPOINT_METADATA').read_bytes()
    + (step / 'state' / 'manifest.ocdbt').read_bytes()
  ).hexdigest()[:16]


def _holds(directory: pathlib.Path, files: Mapping[str, bytes]) -> bool:
  return {p.name for p in directory.iterdir()} == set(files) and all(
    (directory / name).read_bytes() == data for name, data in files.items()
  )
