"""Bodies of requests: multipart forms and JSON, as one dictionary."""

import collections
import json
import re
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from spacetime.serving.errors import ApiError, bad_field

MAX_FILES, MAX_FIELDS = 6, 80
_NESTED = re.compile(r'(\w+)\[(\w+)\]')


async def read(request: Request, *, most: int) -> dict[str, Any]:
  """The fields of a body; a file is its bytes.

  `video[id]` of a form is {'video': {'id': ...}}, as in JSON.

  Args:
    request: the request.
    most: most bytes of a part.

  Raises:
    ApiError: 415 for another type, 400 for a broken body.
  """
  kind = request.headers.get('content-type', '').partition(';')[0].strip()
  if kind.lower() == 'application/json':
    return parse_json(await request.body())
  if kind.lower() not in (
    'multipart/form-data',
    'application/x-www-form-urlencoded',
  ):
    raise ApiError(
      415,
      'Expected a body of multipart/form-data or application/json.',
      code='unsupported_media_type',
    )
  try:
    async with request.form(
      max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=most
    ) as form:
      return await _form_values(form)
  except HTTPException as e:  # of the parser, with its reason
    reason = str(e.detail).rstrip('.')
    raise ApiError(
      400, f'Expected a valid form: {reason}.', code='invalid_form'
    ) from e


async def _form_values(form: FormData) -> dict[str, Any]:
  values: dict[str, Any] = {}
  for name, value in form.multi_items():
    if isinstance(value, UploadFile):
      value = await value.read()
    nested = _NESTED.fullmatch(name)
    if nested:
      inner = values.setdefault(nested[1], {})
      if not isinstance(inner, dict) or nested[2] in inner:
        raise _repeated(nested[1])
      inner[nested[2]] = value
    elif name in values:
      raise _repeated(name)
    else:
      values[name] = value
  return values


def parse_json(data: bytes) -> dict[str, Any]:
  """An object of JSON.

  Raises:
    ApiError: no JSON, not an object, nested too deeply, or a name twice.
  """
  try:
    values = json.loads(data, object_pairs_hook=_once)
  except (ValueError, RecursionError) as e:
    raise ApiError(400, 'Expected valid JSON.', code='invalid_json') from e
  if not isinstance(values, dict):
    raise ApiError(400, 'Expected a JSON object.', code='invalid_json')
  return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An object of JSON, whose names differ: else the last would win unseen."""
  values = dict(pairs)
  if len(values) < len(pairs):
    counts = collections.Counter(name for name, _ in pairs)
    raise _repeated(counts.most_common(1)[0][0])
  return values


def _repeated(name: str) -> ApiError:
  return bad_field(name[:80], f'{name[:80]}: expected once.')
