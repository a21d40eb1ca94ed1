"""Endpoints of webhooks."""

from typing import Annotated

import fastapi
from fastapi import Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from spacetime.serving import fields, webhooks
from spacetime.serving.routes import bodies, calls
from spacetime.serving.routes.calls import Owner, TheService

ABOUT = {
  'name': {'type': 'string'},
  'url': {'type': 'string'},
  'event_types': {'type': 'array', 'items': {'type': 'string'}},
}
router = fastapi.APIRouter(prefix='/v1', tags=['webhooks'])


@router.post('/webhook_endpoints', openapi_extra=bodies.of_json(ABOUT, *ABOUT))
async def create_webhook(
  request: Request, service: TheService, owner: Owner
) -> Response:
  """Adds an endpoint for events of ended videos."""
  values = await calls.values(request)
  return JSONResponse(
    await run_in_threadpool(service.webhooks.create, owner, values)
  )


@router.get('/webhook_endpoints')
def list_webhooks(
  service: TheService,
  owner: Owner,
  after: str | None = None,
  limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> Response:
  """Lists endpoints."""
  return JSONResponse(service.webhooks.list(owner, after=after, limit=limit))


@router.get('/webhook_event_types')
def list_event_types(owner: Owner) -> Response:
  """Lists the types of events."""
  return JSONResponse({'object': 'list', 'data': list(webhooks.EVENTS)})


@router.get('/webhook_endpoints/{webhook_id}')
def retrieve_webhook(
  webhook_id: str, service: TheService, owner: Owner
) -> Response:
  """An endpoint."""
  return JSONResponse(service.webhooks.get(owner, webhook_id))


@router.post(
  '/webhook_endpoints/{webhook_id}', openapi_extra=bodies.of_json(ABOUT)
)
async def update_webhook(
  webhook_id: str, request: Request, service: TheService, owner: Owner
) -> Response:
  """Changes an endpoint."""
  values = await calls.values(request)
  return JSONResponse(
    await run_in_threadpool(service.webhooks.update, owner, webhook_id, values)
  )


@router.delete('/webhook_endpoints/{webhook_id}')
def delete_webhook(
  webhook_id: str, service: TheService, owner: Owner
) -> Response:
  """Removes an endpoint."""
  return JSONResponse(service.webhooks.delete(owner, webhook_id))


@router.post(
  '/webhook_endpoints/{webhook_id}/rotate_secret',
  openapi_extra=bodies.of_json({'keep_old_secret_active_for_24_hours': {}}),
)
async def rotate_secret(
  webhook_id: str, request: Request, service: TheService, owner: Owner
) -> Response:
  """Replaces the secret of an endpoint."""
  values = await calls.values(request) if await request.body() else {}
  name = 'keep_old_secret_active_for_24_hours'
  fields.check_names(values, (name,))
  keep = fields.flag(name, values.get(name, False))
  return JSONResponse(
    await run_in_threadpool(
      service.webhooks.rotate, owner, webhook_id, keep_old=keep
    )
  )


@router.post(
  '/webhook_endpoints/{webhook_id}/test',
  openapi_extra=bodies.of_json(
    {'event_type': {'type': 'string'}}, 'event_type'
  ),
)
async def test_webhook(
  webhook_id: str, request: Request, service: TheService, owner: Owner
) -> Response:
  """Sends a test event."""
  values = await calls.values(request)
  fields.check_names(values, ('event_type',))
  return JSONResponse(
    await run_in_threadpool(
      service.webhooks.test, owner, webhook_id, values.get('event_type')
    )
  )
