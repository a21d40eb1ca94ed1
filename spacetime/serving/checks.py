"""Moderation and provenance of what clients send: texts, pictures, files."""

import contextlib
import datetime
import pathlib
import secrets
import tempfile
import time
from typing import Any

import numpy as np

from spacetime.provenance import manifest, watermark
from spacetime.provenance.keys import SigningKey
from spacetime.safety import frames as frames_lib
from spacetime.safety import texts as texts_lib
from spacetime.safety.policy import CheckError, Policy
from spacetime.serving import decode_upload, fields, uploads
from spacetime.serving.errors import ApiError, bad_field

CATEGORIES = (
  *('harassment', 'harassment/threatening', 'hate', 'hate/threatening'),
  *('illicit', 'illicit/violent', 'self-harm', 'self-harm/instructions'),
  *('self-harm/intent', 'sexual', 'sexual/minors', 'violence'),
  'violence/graphic',
)
MAX_INPUTS = 32
MAX_PIXELS = 2**28  # of a file whose watermark is read
MAX_FRAMES = 1000


def moderate(value: Any, policy: Policy) -> dict[str, Any]:
  """The answer of the moderation endpoint: the text rules of all categories,
  and the policy's classifiers of texts and pictures.

  Args:
    value: a text, texts, or parts of type text and image_url.
    policy: the service's policy.

  Raises:
    ApiError: another form; 503 if a check cannot run.
  """
  entries = value if isinstance(value, list) else [value]
  if not entries or len(entries) > MAX_INPUTS:
    raise bad_field('input', f'input: expected 1 to {MAX_INPUTS} entries.')
  results = [_moderation(entry, policy) for entry in entries]
  if any(isinstance(entry, dict) for entry in entries):
    results = [_merged(results)]  # parts of one input
  return {
    'id': f'modr-{secrets.token_hex(12)}',
    'model': f'spacetime-rules-{policy.version}',
    'results': results,
  }


def _moderation(entry: Any, policy: Policy) -> dict[str, Any]:
  kind, content = 'text', entry
  if isinstance(entry, dict):
    kind = entry.get('type')
    content = entry.get(kind) if isinstance(kind, str) else None
  scores = dict.fromkeys(CATEGORIES, 0.0)
  if kind == 'text':
    text = fields.text('input', content, 30_000)
    flagged = {name for name in policy.matches(text) if name in scores}
    if policy.texts is not None:
      checker = texts_lib.TextChecker(policy)
      try:
        scores |= checker.scores(text)
        verdict = checker.check_text(text)
      except CheckError as e:
        raise ApiError(503, f'{e}.', code='safety_check_failed') from e
      flagged |= set() if verdict.allowed else {verdict.category}
    scores |= dict.fromkeys(flagged, 1.0)
    return _result(scores, flagged, kind)
  if kind != 'image_url' or policy.frames is None:
    raise bad_field('input', 'input: expected texts or pictures to check.')
  url = content.get('url') if isinstance(content, dict) else content
  if not isinstance(url, str):
    raise bad_field('input', 'input: expected a data: URL.')
  picture_1HWC = decode(
    uploads.data_url(url, param='input'), 'image', param='input'
  )
  try:
    verdict = frames_lib.check(picture_1HWC, policy.frames)
  except CheckError as e:
    raise ApiError(503, f'{e}.', code='safety_check_failed') from e
  scores['sexual'] = verdict.score
  return _result(scores, set() if verdict.allowed else {'sexual'}, 'image')


def _result(scores, flagged: set[str], kind: str) -> dict[str, Any]:
  return {
    'flagged': bool(flagged),
    'categories': {name: name in flagged for name in CATEGORIES},
    'category_scores': scores,
    'category_applied_input_types': {name: [kind] for name in CATEGORIES},
  }


def _merged(results: list[dict[str, Any]]) -> dict[str, Any]:
  scores = {
    name: max(result['category_scores'][name] for result in results)
    for name in CATEGORIES
  }
  flagged = {
    name
    for result in results
    for name in CATEGORIES
    if result['categories'][name]
  }
  kinds = sorted(
    {
      kind
      for result in results
      for kind in result['category_applied_input_types']['sexual']
    }
  )
  merged = _result(scores, flagged, 'text')
  merged['category_applied_input_types'] = dict.fromkeys(CATEGORIES, kinds)
  return merged


def decode(data: bytes, kind: str, *, param: str) -> np.ndarray:
  """Frames of bytes of a client, decoded in a process with limits.

  Args:
    data: an image or video.
    kind: 'image' or 'video'.
    param: field of the API, for messages.

  Raises:
    ApiError: not a readable image or video.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'file'
    path.write_bytes(data)
    out = pathlib.Path(folder) / 'frames.npy'
    answer = uploads.decode(
      kind, path, out, max_frames=MAX_FRAMES, max_pixels=MAX_PIXELS
    )
    if 'error' in answer:
      raise bad_field(param, f'{param}: {answer["error"]}.', 'invalid_file')
    # Mapped, since frames may be larger than this process should become.
    return np.load(out, mmap_mode='r', allow_pickle=False)


def provenance(
  data: bytes, key: SigningKey | None, *, beside: bytes | None = None
) -> dict[str, Any]:
  """What a file says of its origin: manifest and watermark.

  Args:
    data: an image or video, of anybody's.
    key: our keys; without them only the manifest is read.
    beside: the manifest of a file whose format has no room for it.

  Raises:
    ApiError: another format.
  """
  container = decode_upload.container_of(data[:16])
  if container is None:
    raise bad_field('file', 'file: expected an image or video.', 'invalid_file')
  suffix = {'jpeg': '.jpg'}.get(container, f'.{container}')
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / f'file{suffix}'
    path.write_bytes(data)
    if beside is not None:
      manifest.sidecar(path).write_bytes(beside)
    report = manifest.verify(path, roots=[key.root] if key else [])
  detected = report.state in ('trusted', 'valid')
  created = report.generation.get('created_at')
  results = [
    {
      'type': 'c2pa',
      'outcome': 'detected' if detected else 'not_detected',
      'validation_state': report.state,
      'issuer': report.issuer,
      'model': report.generation.get('model'),
      'generated_at': report.signed_at or _rfc3339(created),
      'actions': list(report.actions),
      'ingredients': list(report.ingredients),
      'problems': list(report.problems),
    }
  ]
  if key is not None:
    results.append(_watermark(data, container, key))
  return {
    'object': 'content_provenance_check',
    'created_at': int(time.time()),
    'results': results,
  }


def _watermark(data: bytes, container: str, key: SigningKey) -> dict[str, Any]:
  result = {'type': watermark.NAME, 'outcome': 'not_detected'}
  kind = 'video' if container in decode_upload.VIDEOS else 'image'
  with contextlib.suppress(ApiError):  # a broken picture has no watermark
    reading = watermark.read(decode(data, kind, param='file'), key.watermark)
    result['score'] = round(reading.score, 2)
    if reading.payload is not None:
      result |= {'outcome': 'detected', 'payload': f'{reading.payload:08x}'}
  return result


def _rfc3339(seconds: float | None) -> str | None:
  if not isinstance(seconds, (int, float)):
    return None
  time_ = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
  return time_.isoformat(timespec='seconds')
