"""The HTTP application of a service."""

import asyncio
import contextlib
import http
from collections.abc import AsyncIterator

import fastapi
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

import spacetime
from spacetime.serving import errors
from spacetime.serving.errors import ApiError, bad_field
from spacetime.serving.middleware import Guard
from spacetime.serving.routes import (
  checks,
  events,
  models,
  page,
  videos,
  webhooks,
)
from spacetime.serving.service import MIB, Service
from spacetime.serving.settings import LOOPBACK

SUBJECTS = (videos, events, models, checks, webhooks, page)
SWEEP_SECONDS = 60.0


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
  for subject in SUBJECTS:
    app.include_router(subject.router)
  return app


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
