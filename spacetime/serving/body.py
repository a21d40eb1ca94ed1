"""Bodies of requests: multipart forms and JSON, as one dictionary."""

import json
import re
from typing import Any

from starlette.datastructures import UploadFile
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
  values: dict[str, Any] = {}
  async with request.form(
    max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=most
  ) as form:
    for name, value in form.multi_items():
      if isinstance(value, UploadFile):
        value = await value.read()
      nested = _NESTED.fullmatch(name)
      if nested:
        inner = values.setdefault(nested[1], {})
        if not isinstance(inner, dict) or nested[2] in inner:
          raise bad_field(nested[1], f'{nested[1]}: expected once.')
        inner[nested[2]] = value
      elif name in values:
        raise bad_field(name[:80], f'{name[:80]}: expected once.')
      else:
        values[name] = value
  return values


def parse_json(data: bytes) -> dict[str, Any]:
  """An object of JSON.

  Raises:
    ApiError: no JSON, not an object, or nested too deeply.
  """
  try:
    values = json.loads(data)
  except (ValueError, RecursionError) as e:
    raise ApiError(400, 'Expected valid JSON.', code='invalid_json') from e
  if not isinstance(values, dict):
    raise ApiError(400, 'Expected a JSON object.', code='invalid_json')
  return values
