"""The HTTP application: routes of the API and of the page."""

import asyncio
import contextlib
import http
import importlib.resources
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import fastapi
from fastapi import Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import (
  FileResponse,
  JSONResponse,
  Response,
  StreamingResponse,
)
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

import spacetime
from spacetime.serving import (
  body,
  checks,
  errors,
  fields,
  metrics,
  webhooks,
)
from spacetime.serving.errors import ApiError, bad_field
from spacetime.serving.keys import ApiKeys
from spacetime.serving.middleware import Guard
from spacetime.serving.service import MIB, Service
from spacetime.serving.settings import LOOPBACK

COOKIE = 'spacetime_key'
POLL_MS = '500'  # how often the client asks for the status
EVENT_SECONDS = 0.2
SWEEP_SECONDS = 60.0
PAGE = importlib.resources.files('spacetime.serving') / 'page'
PAGE_FILES = {
  'index.html': 'text/html; charset=utf-8',
  'app.js': 'text/javascript; charset=utf-8',
  'style.css': 'text/css; charset=utf-8',
}
ENDED = ('completed', 'failed')
UNSUPPORTED = 'Characters are not supported by this service.'


def create(service: Service) -> fastapi.FastAPI:
  """The application of a service.

  Args:
    service: the jobs; its supervisor is started with the application.
  """

  @contextlib.asynccontextmanager
  async def lifespan(app) -> AsyncIterator[None]:
    service.supervisor.start()
    service.webhooks.start()
    sweeper = asyncio.create_task(_sweep(service))
    yield
    sweeper.cancel()
    await run_in_threadpool(service.webhooks.stop)
    await run_in_threadpool(service.supervisor.stop)

  app = fastapi.FastAPI(
    title='spacetime',
    summary="A video service with OpenAI's interface.",
    version=spacetime.__version__,
    lifespan=lifespan,
    docs_url=None,  # its page loads scripts of another site
    redoc_url=None,
    openapi_url='/openapi.json',
    responses={
      code: {'model': errors.ErrorBody}
      for code in (400, 401, 403, 404, 413, 415, 429, 503)
    },
  )
  app.state.service = service
  app.add_exception_handler(ApiError, _api_error)
  app.add_exception_handler(HTTPException, _http_error)
  app.add_exception_handler(RequestValidationError, _validation_error)
  app.add_exception_handler(Exception, _internal_error)
  settings = service.settings
  hosts = {*LOOPBACK, settings.host} if settings.is_local else None
  app.add_middleware(
    Guard, max_body_bytes=settings.max_upload_mb * MIB, hosts=hosts
  )
  app.include_router(_videos())
  app.include_router(_others())
  app.include_router(_checks())
  app.include_router(_webhooks())
  app.include_router(_page())
  return app


# -- who calls -----------------------------------------------------------------


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


# -- videos --------------------------------------------------------------------


def _body(*, required: tuple[str, ...], inputs: tuple[str, ...] = ()) -> dict:
  """OpenAPI description of a body that is a form or JSON."""
  schema = fields.schema(required=required, inputs=inputs)
  form = json.loads(json.dumps(schema))
  for name in (*inputs, *fields.MANIFESTS):
    if name in form['properties']:
      form['properties'][name] = {'type': 'string', 'format': 'binary'}
  content = {'application/json': {'schema': schema}}
  if inputs:
    content['multipart/form-data'] = {'schema': form}
  return {'requestBody': {'required': True, 'content': content}}


async def _values(request: Request) -> dict[str, Any]:
  service = get_service(request)
  return await body.read(request, most=service.settings.max_upload_mb * MIB)


def _video(service: Service, job) -> JSONResponse:
  return JSONResponse(
    service.show(job), headers={'openai-poll-after-ms': POLL_MS}
  )


def _videos() -> fastapi.APIRouter:
  router = fastapi.APIRouter(prefix='/v1', tags=['videos'])
  inputs = tuple(fields.INPUTS)

  @router.post(
    '/videos', openapi_extra=_body(required=('prompt',), inputs=inputs)
  )
  async def create_video(
    request: Request, service: TheService, owner: Owner
  ) -> Response:
    """Queues a video of a prompt and, optionally, images and videos."""
    values = await _values(request)
    job = await run_in_threadpool(
      service.create, owner, values, idempotency_key=_key(request)
    )
    return _video(service, job)

  @router.post(
    '/videos/edits',
    openapi_extra=_body(required=('prompt', 'video'), inputs=inputs),
  )
  async def edit_video(
    request: Request, service: TheService, owner: Owner
  ) -> Response:
    """Queues an edit of a video."""
    values = await _values(request)
    job = await run_in_threadpool(
      service.edit, owner, values, idempotency_key=_key(request)
    )
    return _video(service, job)

  @router.post(
    '/videos/extensions',
    openapi_extra=_body(required=('prompt', 'seconds', 'video'), inputs=inputs),
  )
  async def extend_video(
    request: Request, service: TheService, owner: Owner
  ) -> Response:
    """Queues an extension of a video by `seconds`."""
    values = await _values(request)
    job = await run_in_threadpool(
      service.extend, owner, values, idempotency_key=_key(request)
    )
    return _video(service, job)

  @router.post('/videos/characters')
  def create_character(owner: Owner) -> Response:
    """Not supported."""
    raise ApiError(400, UNSUPPORTED, code='not_supported')

  @router.get('/videos/characters/{character_id}')
  def get_character(character_id: str, owner: Owner) -> Response:
    """Not supported."""
    raise ApiError(400, UNSUPPORTED, code='not_supported')

  @router.get('/videos')
  def list_videos(
    service: TheService,
    owner: Owner,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal['asc', 'desc'] = 'desc',
  ) -> Response:
    """Lists videos by age."""
    try:
      page, more = service.jobs.page(
        owner, after=after, limit=limit, descending=order == 'desc'
      )
    except (KeyError, UnicodeEncodeError) as e:
      raise bad_field('after', 'after: expected the id of a video.') from e
    return JSONResponse(
      {
        'object': 'list',
        'data': [service.show(job) for job in page],
        'first_id': page[0].id if page else None,
        'last_id': page[-1].id if page else None,
        'has_more': more,
      }
    )

  @router.get('/videos/{video_id}')
  def retrieve_video(
    video_id: str, service: TheService, owner: Owner
  ) -> Response:
    """A video and its progress."""
    return _video(service, service.get(owner, video_id))

  @router.patch('/videos/{video_id}', openapi_extra=_body(required=()))
  async def change_video(
    video_id: str, request: Request, service: TheService, owner: Owner
  ) -> Response:
    """Changes fields of a video that is still queued."""
    values = await _values(request)
    return _video(
      service,
      await run_in_threadpool(service.change, owner, video_id, values),
    )

  @router.delete('/videos/{video_id}')
  def delete_video(
    video_id: str, service: TheService, owner: Owner
  ) -> Response:
    """Removes a video; stops it if it runs."""
    service.delete(owner, video_id)
    return JSONResponse(
      {'id': video_id, 'object': 'video.deleted', 'deleted': True}
    )

  @router.get('/videos/{video_id}/content')
  def download_content(
    video_id: str,
    service: TheService,
    owner: Owner,
    variant: Literal['video', 'thumbnail', 'spritesheet', 'manifest'] = 'video',
  ) -> Response:
    """A file of a completed video, complete or by ranges."""
    job = service.completed(owner, video_id)
    entry = job.result['variants'].get(variant)
    if entry is None:
      raise bad_field('variant', 'variant: its manifest is in the file.')
    return FileResponse(
      service.files.result(video_id, entry['name']),
      media_type=entry['type'],
      filename=f'{video_id}-{entry["name"]}',
      content_disposition_type='inline',
    )

  @router.post(
    '/videos/{video_id}/remix', openapi_extra=_body(required=('prompt',))
  )
  async def remix_video(
    video_id: str, request: Request, service: TheService, owner: Owner
  ) -> Response:
    """Queues a video with another prompt and the settings of this one."""
    values = await _values(request)
    job = await run_in_threadpool(
      service.remix, owner, video_id, values, idempotency_key=_key(request)
    )
    return _video(service, job)

  @router.post('/videos/{video_id}/cancel')
  def cancel_video(
    video_id: str, service: TheService, owner: Owner
  ) -> Response:
    """Cancels a video within one solver step."""
    return _video(service, service.cancel(owner, video_id))

  @router.get('/videos/{video_id}/events')
  async def video_events(
    video_id: str, request: Request, service: TheService, owner: Owner
  ) -> Response:
    """Progress of a video, as server-sent events, until it ends."""
    await run_in_threadpool(service.get, owner, video_id)
    return _events(request, _follow(service, owner, video_id))

  @router.get('/events')
  async def all_events(
    request: Request, service: TheService, owner: Owner
  ) -> Response:
    """Progress of all videos of the key, as server-sent events."""
    return _events(request, _follow_all(service, owner))

  return router


def _key(request: Request) -> str | None:
  return request.headers.get('idempotency-key')


def _events(request: Request, events: AsyncIterator[str]) -> Response:
  return StreamingResponse(
    events,
    media_type='text/event-stream',
    headers={'cache-control': 'no-store', 'x-accel-buffering': 'no'},
  )


async def _follow(
  service: Service, owner: str, video_id: str
) -> AsyncIterator[str]:
  """An event for each change of a video, the last when it ends."""
  last = None
  while True:
    job = await run_in_threadpool(service.jobs.get, video_id, owner=owner)
    if job is None:
      yield f'event: deleted\ndata: {{"id": "{video_id}"}}\n\n'
      return
    text = json.dumps(service.show(job))
    if text != last:
      yield f'event: video\ndata: {text}\n\n'
      last = text
    if job.status in ENDED:
      return
    await asyncio.sleep(EVENT_SECONDS)


async def _follow_all(service: Service, owner: str) -> AsyncIterator[str]:
  """An event for each change of an owner's newest videos."""
  last: dict[str, str] = {}
  while True:
    page, _ = await run_in_threadpool(
      service.jobs.page, owner, after=None, limit=50, descending=True
    )
    shown = {job.id: json.dumps(service.show(job)) for job in page}
    for job_id, text in reversed(shown.items()):
      if last.get(job_id) != text:
        yield f'event: video\ndata: {text}\n\n'
    for job_id in last.keys() - shown.keys():
      if await run_in_threadpool(service.jobs.get, job_id, owner=owner) is None:
        yield f'event: deleted\ndata: {{"id": "{job_id}"}}\n\n'
    if shown == last:
      yield ': alive\n\n'
    last = shown
    await asyncio.sleep(EVENT_SECONDS)


# -- models, health, metrics ---------------------------------------------------


def _others() -> fastapi.APIRouter:
  router = fastapi.APIRouter()

  @router.get('/v1/models', tags=['models'])
  def list_models(service: TheService, owner: Owner) -> Response:
    """Lists the models."""
    return JSONResponse(
      {
        'object': 'list',
        'data': [_model(service, name) for name in service.models],
      }
    )

  @router.get('/v1/models/{model}', tags=['models'])
  def retrieve_model(model: str, service: TheService, owner: Owner) -> Response:
    """A model with its default sizes and settings."""
    if model not in service.models:
      raise errors.unknown_id('model', model)
    return JSONResponse(_model(service, model))

  @router.get('/health', tags=['service'])
  def health(service: TheService) -> Response:
    """Whether the worker runs and the disk has room."""
    free = service.files.free_bytes() // MIB
    full = free < service.settings.min_free_mb
    state = service.supervisor.state
    status = {
      'status': 'disk_full' if full else 'ok' if state == 'ready' else state,
      'worker': state,
      'failure': service.supervisor.failure,
      'free_mb': free,
      'jobs': service.jobs.counts(),
      'version': spacetime.__version__,
    }
    failed = full or state == 'failed'
    return JSONResponse(status, status_code=503 if failed else 200)

  @router.get('/metrics', tags=['service'])
  def show_metrics(service: TheService) -> Response:
    """Counters in Prometheus' format."""
    return Response(
      metrics.render(service), media_type='text/plain; version=0.0.4'
    )

  return router


def _model(service: Service, name: str) -> dict[str, Any]:
  card = {k: v for k, v in service.models[name].items() if k != 'id'}
  return {
    'id': name,
    'object': 'model',
    'created': int(service.began),
    'owned_by': 'spacetime',
    **card,
  }


# -- moderation and provenance -------------------------------------------------


def _checks() -> fastapi.APIRouter:
  router = fastapi.APIRouter(prefix='/v1', tags=['checks'])

  @router.post(
    '/moderations',
    openapi_extra=_schema({'input': {}, 'model': {'type': 'string'}}, 'input'),
  )
  async def create_moderation(
    request: Request, service: TheService, owner: Owner
  ) -> Response:
    """Checks texts and pictures by the service's rules."""
    values = await _values(request)
    return JSONResponse(
      await run_in_threadpool(
        checks.moderate, values.get('input'), service.policy
      )
    )

  @router.post(
    '/content_provenance_checks',
    openapi_extra=_form({'file': {'type': 'string', 'format': 'binary'}}),
  )
  async def check_provenance(
    request: Request, service: TheService, owner: Owner
  ) -> Response:
    """Reads the manifest and the watermark of a file."""
    values = await _values(request)
    data = values.get('file')
    if not isinstance(data, bytes):
      raise bad_field('file', 'file: expected a file.', 'missing')
    return JSONResponse(
      await run_in_threadpool(service.check_provenance, owner, data)
    )

  return router


def _schema(properties: dict, *required: str) -> dict:
  schema = {
    'type': 'object',
    'properties': properties,
    'required': list(required),
  }
  content = {'application/json': {'schema': schema}}
  return {'requestBody': {'required': True, 'content': content}}


def _form(properties: dict) -> dict:
  schema = {
    'type': 'object',
    'properties': properties,
    'required': list(properties),
  }
  content = {'multipart/form-data': {'schema': schema}}
  return {'requestBody': {'required': True, 'content': content}}


# -- webhooks ------------------------------------------------------------------


def _webhooks() -> fastapi.APIRouter:
  router = fastapi.APIRouter(prefix='/v1', tags=['webhooks'])
  about = {
    'name': {'type': 'string'},
    'url': {'type': 'string'},
    'event_types': {'type': 'array', 'items': {'type': 'string'}},
  }

  @router.post('/webhook_endpoints', openapi_extra=_schema(about, *about))
  async def create_webhook(
    request: Request, service: TheService, owner: Owner
  ) -> Response:
    """Adds an endpoint for events of ended videos."""
    values = await _values(request)
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

  @router.post('/webhook_endpoints/{webhook_id}', openapi_extra=_schema(about))
  async def update_webhook(
    webhook_id: str, request: Request, service: TheService, owner: Owner
  ) -> Response:
    """Changes an endpoint."""
    values = await _values(request)
    return JSONResponse(
      await run_in_threadpool(
        service.webhooks.update, owner, webhook_id, values
      )
    )

  @router.delete('/webhook_endpoints/{webhook_id}')
  def delete_webhook(
    webhook_id: str, service: TheService, owner: Owner
  ) -> Response:
    """Removes an endpoint."""
    return JSONResponse(service.webhooks.delete(owner, webhook_id))

  @router.post(
    '/webhook_endpoints/{webhook_id}/rotate_secret',
    openapi_extra=_schema({'keep_old_secret_active_for_24_hours': {}}),
  )
  async def rotate_secret(
    webhook_id: str, request: Request, service: TheService, owner: Owner
  ) -> Response:
    """Replaces the secret of an endpoint."""
    values = await _values(request) if await request.body() else {}
    name = 'keep_old_secret_active_for_24_hours'
    keep = fields.flag(name, values.get(name, False))
    return JSONResponse(
      await run_in_threadpool(
        service.webhooks.rotate, owner, webhook_id, keep_old=keep
      )
    )

  @router.post(
    '/webhook_endpoints/{webhook_id}/test',
    openapi_extra=_schema({'event_type': {'type': 'string'}}, 'event_type'),
  )
  async def test_webhook(
    webhook_id: str, request: Request, service: TheService, owner: Owner
  ) -> Response:
    """Sends a test event."""
    values = await _values(request)
    return JSONResponse(
      await run_in_threadpool(
        service.webhooks.test, owner, webhook_id, values.get('event_type')
      )
    )

  return router


# -- the page ------------------------------------------------------------------


def _page() -> fastapi.APIRouter:
  router = fastapi.APIRouter(include_in_schema=False)

  @router.get('/')
  def index() -> Response:
    return _static('index.html')

  @router.get('/page/{name}')
  def static(name: str) -> Response:
    return _static(name)

  @router.post('/v1/session')
  async def log_in(request: Request, service: TheService) -> Response:
    """Keeps an API key in a cookie, which <video> needs."""
    values = await _values(request)
    key = fields.text('key', values.get('key'), 200)
    if service.keys.owner(key) is None:
      raise ApiError(401, 'Unknown or expired key.', code='invalid_api_key')
    response = JSONResponse({'object': 'session'})
    response.set_cookie(
      COOKIE,
      key,
      max_age=30 * 24 * 3600,
      httponly=True,
      samesite='strict',
      secure=request.url.scheme == 'https',
    )
    return response

  return router


def _static(name: str) -> Response:
  if name not in PAGE_FILES:
    raise errors.unknown_id('page', name)
  return Response(
    (PAGE / name).read_bytes(),
    media_type=PAGE_FILES[name],
    headers={'cache-control': 'no-cache'},
  )


# -- errors --------------------------------------------------------------------


async def _api_error(request: Request, error: ApiError) -> Response:
  return JSONResponse(
    errors.body(error), status_code=error.status, headers=error.headers
  )


async def _http_error(request: Request, error: HTTPException) -> Response:
  phrase = http.HTTPStatus(error.status_code).phrase
  return await _api_error(
    request,
    ApiError(
      error.status_code,
      f'{phrase}: {request.method} {request.url.path[:200]}',
      code=phrase.lower().replace(' ', '_'),
      headers=error.headers,
    ),
  )


async def _validation_error(
  request: Request, error: RequestValidationError
) -> Response:
  first = error.errors()[0]
  name = str(first['loc'][-1])
  return await _api_error(request, bad_field(name, f'{name}: {first["msg"]}.'))


async def _internal_error(request: Request, error: Exception) -> Response:
  return await _api_error(
    request, ApiError(500, 'Internal error.', code='internal_error')
  )


async def _sweep(service: Service) -> None:
  while True:
    with contextlib.suppress(Exception):  # the disk or database is away
      await run_in_threadpool(service.sweep)
    await asyncio.sleep(SWEEP_SECONDS)
