"""Signing of files that `sample` wrote, and the facts their manifests state."""

import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spacetime import SettingError
from spacetime.media.files import with_home
from spacetime.provenance import manifest, watermark
from spacetime.provenance.keys import SigningKey


def payload(metadata: Mapping[str, Any]) -> int:
  """The watermark's payload of a generated video, from its sidecar's values:
  the same settings give the same payload."""
  return watermark.payload_of(
    metadata['weights_hash'],
    metadata['seed'],
    metadata['number'],
    metadata['prompt'],
  )


def mark(
  frames_FHWC: np.ndarray, metadata: Mapping[str, Any], key: SigningKey
) -> np.ndarray:
  """Frames with the watermark of a generated video."""
  return watermark.embed(frames_FHWC, payload(metadata), key.watermark)


def sign(
  path: pathlib.Path,
  metadata: Mapping[str, Any],
  key: SigningKey,
  *,
  inputs: Sequence[manifest.Ingredient] = (),
) -> None:
  """Signs a generated video in its place.

  Args:
    path: the file.
    metadata: its sidecar's values.
    key: the key that its watermark has.
    inputs: files it was made from.

  Raises:
    ValueError: it cannot be signed.
  """
  generation = {
    'model': os.path.basename(str(metadata['checkpoint'])),
    'weights_hash': metadata['weights_hash'],
    'seed': metadata['seed'],
    'mode': metadata['mode'],
    # The prompt itself may be private.
    'prompt_sha256': hashlib.sha256(metadata['prompt'].encode()).hexdigest(),
  }
  signed = path.with_name(f'.{path.stem}.signed{path.suffix}')
  try:
    manifest.sign(
      path,
      signed,
      key,
      generation=generation,
      payload=payload(metadata),
      ingredients=inputs,
    )
    signed.replace(path)
  finally:
    signed.unlink(missing_ok=True)
  beside = manifest.sidecar(signed)
  if beside.exists():
    beside.replace(manifest.sidecar(path))


def sign_missing(
  path: pathlib.Path,
  metadata: Mapping[str, Any],
  key: SigningKey,
  *,
  inputs: Sequence[manifest.Ingredient] = (),
) -> None:
  """Signs a generated video unless the key has signed it, as of a file that was
  kept from a command which may have stopped before; see `sign`."""
  report = manifest.verify(path, roots=[key.root])
  if report.state != 'trusted':
    sign(path, metadata, key, inputs=inputs)


def check(out: str | None) -> None:
  """Refuses outputs that cannot be signed, before anything is sampled.

  Raises:
    SettingError: a folder of frames, or another format.
  """
  suffix = pathlib.PurePath(out or '').suffix.lower()
  if not out or out.endswith('/') or suffix not in manifest.TYPES:
    raise SettingError(
      'out', out, f'a file of {", ".join(manifest.TYPES)} with `sign`'
    )


def ingredients(
  sources: Mapping[str, Any], *, edited: str
) -> list[manifest.Ingredient]:
  """Files of a request whose format holds manifests.

  Args:
    sources: path of each input by the name of its setting.
    edited: the setting whose file the result is an edit of.
  """
  result = []
  for name, source in sources.items():
    path = with_home(source)
    if path.suffix.lower() in manifest.TYPES:
      result.append(manifest.Ingredient(path, name == edited))
  return result
