"""Moderation and provenance of texts, pictures and files."""

import fastapi
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from spacetime.serving import checks, fields
from spacetime.serving.errors import bad_field
from spacetime.serving.routes import bodies, calls
from spacetime.serving.routes.calls import Owner, TheService

router = fastapi.APIRouter(prefix='/v1', tags=['checks'])


@router.post(
  '/moderations',
  openapi_extra=bodies.of_json(
    {'input': {}, 'model': {'type': 'string'}}, 'input'
  ),
)
async def create_moderation(
  request: Request, service: TheService, owner: Owner
) -> Response:
  """Checks texts and pictures by the service's rules."""
  values = await calls.values(request)
  fields.check_names(values, ('input', 'model'))
  return JSONResponse(
    await run_in_threadpool(
      checks.moderate, values.get('input'), service.policy
    )
  )


@router.post(
  '/content_provenance_checks',
  openapi_extra=bodies.form({'file': {'type': 'string', 'format': 'binary'}}),
)
async def check_provenance(
  request: Request, service: TheService, owner: Owner
) -> Response:
  """Reads the manifest and the watermark of a file."""
  values = await calls.values(request)
  fields.check_names(values, ('file',))
  data = values.get('file')
  if not isinstance(data, bytes):
    raise bad_field('file', 'file: expected a file.', 'missing')
  return JSONResponse(
    await run_in_threadpool(service.check_provenance, owner, data)
  )
