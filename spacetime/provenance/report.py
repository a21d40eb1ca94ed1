"""What a file says of its origin: manifest and watermark, as plain values."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from spacetime.media import image_reader, video_reader
from spacetime.provenance import manifest, watermark
from spacetime.provenance.keys import SigningKey

IMAGES = ('.png', '.webp', '.jpg', '.jpeg')


def of_file(
  path: pathlib.Path, key: SigningKey | None, roots: Sequence[str]
) -> dict[str, Any]:
  """The report of a file.

  Args:
    path: a video or image.
    key: keys of the watermark, or None.
    roots: certificates of roots to trust, PEM.

  Raises:
    SettingError: another suffix.
    ValueError: no such file, or, with a key, an unreadable one without a
      manifest.
  """
  report = manifest.verify(path, roots=roots)
  result = {'file': str(path), 'c2pa': dataclasses.asdict(report)}
  if key is None:
    return result
  try:
    if path.suffix.lower() in IMAGES:
      frames_FHWC = image_reader.read_image(path)[None]
    else:
      frames_FHWC = video_reader.read_video(path)
  except (ValueError, OSError) as e:
    if not report.actions:  # no manifest, or nothing of it is left
      raise
    # The manifest says more of a damaged file than its frames.
    result['watermark'] = _watermark('unreadable') | {'problem': str(e)}
    return result
  reading = watermark.read(frames_FHWC, key.watermark)
  payload = None if reading.payload is None else f'{reading.payload:08x}'
  result['watermark'] = _watermark(
    'unknown' if payload is None else 'detected',
    payload=payload,
    score=round(reading.score, 2),
    matches_manifest=payload is not None and reading.payload == report.payload,
  )
  return result


def _watermark(
  state: str,
  *,
  payload: str | None = None,
  score: float = 0.0,
  matches_manifest: bool = False,
) -> dict[str, Any]:
  return {
    'state': state,
    'payload': payload,
    'score': score,
    'matches_manifest': matches_manifest,
  }
