"""A request: its service, its owner, its body."""

from typing import Annotated, Any

from fastapi import Depends, Request

from spacetime.serving import body
from spacetime.serving.errors import ApiError
from spacetime.serving.keys import ApiKeys
from spacetime.serving.service import MIB, Service

COOKIE = 'spacetime_key'


def get_service(request: Request) -> Service:
  """The service of the application."""
  return request.app.state.service


def get_owner(request: Request) -> str:
  """The owner of the request's key.

  Raises:
    ApiError: 401.
  """
  keys: ApiKeys = request.app.state.service.keys
  kind, _, key = request.headers.get('authorization', '').partition(' ')
  if kind.lower() != 'bearer':
    key = request.cookies.get(COOKIE, '')
  owner = keys.owner(key.strip())
  if owner is None:
    raise ApiError(
      401,
      'Expected a valid API key: Authorization: Bearer KEY.',
      code='invalid_api_key',
      headers={'www-authenticate': 'Bearer'},
    )
  return owner


Owner = Annotated[str, Depends(get_owner)]
TheService = Annotated[Service, Depends(get_service)]


async def values(request: Request) -> dict[str, Any]:
  """The fields of the body, see body.read."""
  service = get_service(request)
  return await body.read(request, most=service.settings.max_upload_mb * MIB)


def idempotency_key(request: Request) -> str | None:
  """The Idempotency-Key of a request, or None."""
  return request.headers.get('idempotency-key') or None
