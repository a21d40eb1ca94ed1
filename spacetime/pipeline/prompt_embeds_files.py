"""Prompts' features in files, as the text encoder gives them.

A file is safetensors with

  prompt_embeds           (n, S, Y), the features of n prompts
  negative_prompt_embeds  (n, S, Y) or (1, S, Y), of what to steer away from

in float32, float16 or bfloat16, named as diffusers' pipelines take them. Rows
past the text are zero and may be left out, as the cache does: its files hold
one prompt each, `prompt_embeds` (1, S, Y) with the rows of the text alone.
"""

import hashlib
import os
import pathlib

import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

from spacetime.checkpoint.interop.tensor_files import DTYPES
from spacetime.media import files

TEXT, NEGATIVE = 'prompt_embeds', 'negative_prompt_embeds'
DIGEST = 'sha256'  # in the metadata: of the bytes of prompt_embeds


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The features of a file, by name.

  Raises:
    ValueError: no such file, a damaged one, or not of the form above.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'{path}: no such file')
  if path.suffix in ('.pt', '.pth', '.bin', '.pkl'):
    raise ValueError(
      f'{path} is a pickle, which may run any code when it is read: expected '
      f'safetensors; write it with safetensors.torch.save_file({{{TEXT!r}: '
      f'embeds}}, FILE)'
    )
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      digest = (file.metadata() or {}).get(DIGEST)
      kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}
      foreign = [key for key, kind in kinds.items() if kind not in DTYPES]
      found = {k: file.get_tensor(k) for k in kinds if k not in foreign}
  except (safetensors.SafetensorError, OSError) as e:
    raise ValueError(
      f'{path}: {e}: it is damaged, or not safetensors; write it again'
    ) from e
  if TEXT not in found or found.keys() - {TEXT, NEGATIVE} or foreign:
    told = ', '.join(f'{key} {kind}' for key, kind in kinds.items())
    raise ValueError(
      f'{path} holds {told or "nothing"}: expected {TEXT} and at most '
      f'{NEGATIVE} beside it, in {", ".join(DTYPES)}'
    )
  for name, array in found.items():
    _check(path, name, array)
  if digest and digest != _digest(found[TEXT]):
    raise ValueError(f'{path}: other bytes than were written: it is damaged')
  return found


def write(path: str | os.PathLike, text_nSY: np.ndarray) -> None:
  """Writes features (n, S, Y), the whole file or none of it."""
  path = pathlib.Path(path)
  text_nSY = np.ascontiguousarray(text_nSY)
  metadata = {'format': 'pt', DIGEST: _digest(text_nSY)}
  data = safetensors.numpy.save({TEXT: text_nSY}, metadata=metadata)
  with files.atomic_write(path) as temporary:
    temporary.write_bytes(data)


class Cache:
  """Features of prompts on disk, by what they are the features of.

  A folder that cannot be written, or a file that cannot be read, costs a
  warning and the time of encoding again, nothing else.

  Args:
    folder: made when it is first written to.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = pathlib.Path(folder).expanduser()

  def get(self, key: str, *, width: int) -> np.ndarray | None:
    """The features (S, Y) that were put under a key, or None."""
    path = self._path(key)
    if not path.exists():
      return None
    try:
      text_nSY = read(path)[TEXT]
      if text_nSY.shape[0] != 1 or text_nSY.shape[2] != width:
        raise ValueError(
          f'{path}: {TEXT} {text_nSY.shape}: expected (1, S, {width})'
        )
    except ValueError as e:
      logging.warning('a cached prompt is encoded again: %s', e)
      return None
    return text_nSY[0]

  def put(self, key: str, text_SY: np.ndarray) -> None:
    """Keeps features (S, Y) under a key."""
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      write(self._path(key), text_SY[None])
    except OSError as e:
      logging.warning('no cache of prompts: %s: %s', self.folder, e.strerror)

  def _path(self, key: str) -> pathlib.Path:
    return self.folder / f'{key}.safetensors'


def key(text: str, *, encoder: str, length: int, dtype: str) -> str:
  """What names the features of a text.

  Args:
    text: cleaned.
    encoder: names tokenizer and parameters of the text encoder.
    length: tokens that the text is cut to.
    dtype: that the encoder computes in.
  """
  parts = (encoder, str(length), dtype, text)
  # Lengths first, so that no two lists of parts are the same bytes.
  told = ''.join(f'{len(part)}:{part}' for part in parts)
  return hashlib.sha256(told.encode('utf-8', 'surrogatepass')).hexdigest()


def _check(path, name: str, array: np.ndarray) -> None:
  if array.ndim != 3 or 0 in array.shape:
    raise ValueError(
      f'{path}: {name} {array.shape}: expected (prompts, tokens, width)'
    )
  if not np.isfinite(array.astype(np.float32)).all():
    raise ValueError(f'{path}: {name} has values that are not finite')


def _digest(array: np.ndarray) -> str:
  return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
