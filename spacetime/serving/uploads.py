"""Uploads: stored under our own names, decoded in a process with limits."""

import base64
import binascii
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

from spacetime.provenance import manifest
from spacetime.serving import decode_upload
from spacetime.serving.errors import ApiError, bad_field

SECONDS = 90  # of one upload, after which its process is killed
IMAGE_PIXELS = 64_000_000
# Problems of a manifest that are not those of its file: it is unknown or old.
_SIGNERS = ('signingCredential.', 'timeStamp.')
_DATA_URL = re.compile(
  r'data:[\w.+/-]*(?:;[\w=.+-]+)*;base64,', re.ASCII | re.I
)


@dataclasses.dataclass(frozen=True)
class Upload:
  """A decoded input of a job.

  Attributes:
    original: name of the file as it was sent.
    frames: name of the .npy file of its frames.
    count: number of frames.
    height: height in pixels.
    width: width in pixels.
    fps: frames per second; 0 of an image.
  """

  original: str
  frames: str
  count: int
  height: int
  width: int
  fps: float

  def read(self, folder: pathlib.Path) -> np.ndarray:
    """uint8 frames_FHWC."""
    return np.load(folder / self.frames, allow_pickle=False)


def data_url(value: str, *, param: str) -> bytes:
  """The bytes of a data: URL.

  Raises:
    ApiError: another URL, which is never fetched, or broken base64.
  """
  match = _DATA_URL.match(value[:200])
  if not match:
    raise bad_field(
      param, f'{param}: expected a data: URL in base64; others are not fetched.'
    )
  try:
    return base64.b64decode(value[match.end() :], validate=True)
  except (binascii.Error, ValueError) as e:
    raise bad_field(param, f'{param}: expected valid base64.') from e


def add(
  folder: pathlib.Path,
  slot: str,
  data: bytes | pathlib.Path,
  *,
  param: str,
  max_frames: int,
  max_pixels: int,
  original: pathlib.Path | None = None,
) -> Upload:
  """Stores and decodes an input.

  Args:
    folder: folder of the job's inputs.
    slot: input of the request: image, video, video2 or mask.
    data: the bytes, or a file of ours.
    param: field of the API, for messages.
    max_frames: most frames.
    max_pixels: most pixels of all frames.
    original: a file of ours that the bytes were taken from.

  Raises:
    ApiError: not a readable image or video, or too large.
  """
  kind = 'image' if slot in ('image', 'mask') else 'video'
  head = data[:16] if isinstance(data, bytes) else _head(data)
  container = decode_upload.container_of(head)
  known = decode_upload.IMAGES if kind == 'image' else decode_upload.VIDEOS
  if container not in known:
    raise bad_field(
      param,
      f'{param}: expected {", ".join(known)}.',
      'unsupported_file',
    )
  folder.mkdir(parents=True, exist_ok=True)
  stored = folder / f'{slot}.{container}'
  if isinstance(data, bytes):
    stored.write_bytes(data)
  else:
    os.link(data, stored)  # stays if its job is deleted
  if original is not None:
    link = folder / f'{slot}-source{original.suffix}'
    os.link(original, link)
    original = link
  frames = folder / f'{slot}.npy'
  answer = decode(
    kind,
    stored,
    frames,
    max_frames=1 if kind == 'image' else max_frames,
    max_pixels=min(IMAGE_PIXELS, max_pixels) if kind == 'image' else max_pixels,
  )
  if 'error' in answer:
    raise bad_field(param, f'{param}: {answer["error"]}.', 'invalid_file')
  return Upload(
    (original or stored).name,
    frames.name,
    answer['frames'],
    answer['height'],
    answer['width'],
    answer['fps'],
  )


def add_manifest(path: pathlib.Path, data: bytes, *, param: str) -> None:
  """Stores the manifest of an input beside it.

  Args:
    path: the input.
    data: the manifest.
    param: field of the API, for messages.

  Raises:
    ApiError: it is not this file's, or the file has room for its own.
  """
  if path.suffix not in manifest.BESIDE:
    raise bad_field(param, f'{param}: expected none; it is in the file.')
  beside = manifest.sidecar(path)
  beside.write_bytes(data)
  report = manifest.verify(path)
  if not all(problem.startswith(_SIGNERS) for problem in report.problems):
    raise bad_field(
      param,
      f'{param}: expected the C2PA manifest of this file.',
      'invalid_file',
    )


def decode(
  kind: str,
  path: pathlib.Path,
  out: pathlib.Path,
  *,
  max_frames: int,
  max_pixels: int,
) -> dict[str, Any]:
  """The answer of a decode_upload process, {'error'} if it was killed."""
  command = [
    *(sys.executable, '-m', 'spacetime.serving.decode_upload', kind),
    *(os.fspath(path.absolute()), os.fspath(out.absolute())),
    *(str(max_frames), str(max_pixels)),
  ]
  root = pathlib.Path(__file__).parents[2]
  environment = {
    'PATH': os.environ.get('PATH', ''),
    'PYTHONPATH': os.fspath(root),
    'OPENBLAS_NUM_THREADS': '1',  # each thread reserves address space
    'OMP_NUM_THREADS': '1',
  }
  with tempfile.TemporaryDirectory(prefix='spacetime-') as empty:
    try:
      process = subprocess.run(
        command,
        cwd=empty,
        env=environment,
        capture_output=True,
        timeout=SECONDS,
      )
    except subprocess.TimeoutExpired:
      return {'error': f'not decoded within {SECONDS} seconds'}
  try:
    return json.loads(process.stdout.splitlines()[-1])
  except (ValueError, IndexError):
    return {'error': 'not decoded within the limits of memory and time'}


def digest(data: bytes) -> str:
  """SHA-256 of an input, for idempotency and the audit."""
  return hashlib.sha256(data).hexdigest()


def too_large(most: int) -> ApiError:
  """The error of a body that is larger than allowed."""
  return ApiError(
    413,
    f'The request is too large; expected at most {most // 2**20} MiB.',
    code='request_too_large',
  )


def _head(path: pathlib.Path) -> bytes:
  with path.open('rb') as file:
    return file.read(16)
