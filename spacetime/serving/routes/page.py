"""The page and its session."""

import importlib.resources

import fastapi
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from spacetime.serving import errors, fields
from spacetime.serving.errors import ApiError
from spacetime.serving.routes import calls
from spacetime.serving.routes.calls import TheService

PAGE = importlib.resources.files('spacetime.serving') / 'page'
PAGE_FILES = {
  'index.html': 'text/html; charset=utf-8',
  'app.js': 'text/javascript; charset=utf-8',
  'events.js': 'text/javascript; charset=utf-8',
  'style.css': 'text/css; charset=utf-8',
}
router = fastapi.APIRouter(include_in_schema=False)


@router.head('/')
@router.get('/')
def index() -> Response:
  return _static('index.html')


@router.head('/page/{name}')
@router.get('/page/{name}')
def static(name: str) -> Response:
  return _static(name)


@router.post('/v1/session')
async def log_in(request: Request, service: TheService) -> Response:
  """Keeps an API key in a cookie, which <video> needs."""
  values = await calls.values(request)
  fields.check_names(values, ('key',))
  key = fields.text('key', values.get('key'), 200)
  if service.keys.owner(key) is None:
    raise ApiError(401, 'Unknown or expired key.', code='invalid_api_key')
  response = JSONResponse({'object': 'session'})
  if not service.keys.required:  # any key is accepted, and none is needed
    return response
  response.set_cookie(
    calls.COOKIE,
    key,
    max_age=30 * 24 * 3600,
    httponly=True,
    samesite='strict',
    secure=request.url.scheme == 'https',
  )
  return response


def _static(name: str) -> Response:
  if name not in PAGE_FILES:
    raise errors.unknown_id('page', name)
  return Response(
    (PAGE / name).read_bytes(),
    media_type=PAGE_FILES[name],
    headers={'cache-control': 'no-cache'},
  )
