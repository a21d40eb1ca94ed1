"""Errors of the API in OpenAI's format: message, type, param and code."""

from collections.abc import Mapping
from typing import Any

import pydantic

TYPES = {
  401: 'authentication_error',
  403: 'permission_error',
  429: 'rate_limit_error',
  500: 'server_error',
  503: 'server_error',
}


class ApiError(Exception):
  """An error that a request is answered with.

  Args:
    status: HTTP status.
    message: one sentence that says what to change.
    code: machine-readable name.
    param: the field of the request, if it is about one.
    headers: headers of the answer.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
  ):
    super().__init__(message)
    self.status, self.message = status, message
    self.code, self.param, self.headers = code, param, dict(headers or {})


def bad_field(
  param: str | None, message: str, code='invalid_value'
) -> ApiError:
  """The error of a field out of its range."""
  return ApiError(400, message, code=code, param=param)


def unknown_id(kind: str, name: str, param: str | None = None) -> ApiError:
  """The error of an id that does not exist for this owner."""
  return ApiError(
    404, f'No {kind} {name[:80]!r}.', code='not_found', param=param
  )


def body(error: ApiError) -> dict[str, Any]:
  """The JSON body of an error."""
  return {
    'error': {
      'message': _unicode(error.message),
      'type': TYPES.get(error.status, 'invalid_request_error'),
      'param': _unicode(error.param),
      'code': error.code,
    }
  }


def _unicode(text: str | None) -> str | None:
  """A text that can be encoded: JSON may name fields by lone surrogates."""
  return None if text is None else text.encode(errors='replace').decode()


class ErrorDetail(pydantic.BaseModel):
  """What went wrong."""

  message: str
  type: str
  param: str | None
  code: str | None


class ErrorBody(pydantic.BaseModel):
  """The body of an error, for the OpenAPI document."""

  error: ErrorDetail
