"""Videos: create, retrieve, list, content, delete, and what is made of them."""

from typing import Annotated, Literal

import fastapi
from fastapi import Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from spacetime.serving import fields
from spacetime.serving.errors import ApiError, bad_field, unknown_id
from spacetime.serving.routes import bodies, calls
from spacetime.serving.routes.calls import Owner, TheService
from spacetime.serving.service import Service

POLL_MS = '500'  # how often the client asks for the status
UNSUPPORTED = 'Characters are not supported by this service.'
INPUTS = tuple(fields.INPUTS)
router = fastapi.APIRouter(prefix='/v1', tags=['videos'])


def _shown(service: Service, job) -> JSONResponse:
  return JSONResponse(
    service.show(job), headers={'openai-poll-after-ms': POLL_MS}
  )


@router.post(
  '/videos', openapi_extra=bodies.video(required=('prompt',), inputs=INPUTS)
)
async def create_video(
  request: Request, service: TheService, owner: Owner
) -> Response:
  """Queues a video of a prompt and, optionally, images and videos."""
  values = await calls.values(request)
  job = await run_in_threadpool(
    service.create,
    owner,
    values,
    idempotency_key=calls.idempotency_key(request),
  )
  return _shown(service, job)


@router.post(
  '/videos/edits',
  openapi_extra=bodies.video(required=('prompt', 'video'), inputs=INPUTS),
)
async def edit_video(
  request: Request, service: TheService, owner: Owner
) -> Response:
  """Queues an edit of a video."""
  values = await calls.values(request)
  job = await run_in_threadpool(
    service.edit, owner, values, idempotency_key=calls.idempotency_key(request)
  )
  return _shown(service, job)


@router.post(
  '/videos/extensions',
  openapi_extra=bodies.video(
    required=('prompt', 'seconds', 'video'), inputs=INPUTS
  ),
)
async def extend_video(
  request: Request, service: TheService, owner: Owner
) -> Response:
  """Queues an extension of a video by `seconds`."""
  values = await calls.values(request)
  job = await run_in_threadpool(
    service.extend,
    owner,
    values,
    idempotency_key=calls.idempotency_key(request),
  )
  return _shown(service, job)


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
  return _shown(service, service.get(owner, video_id))


@router.patch('/videos/{video_id}', openapi_extra=bodies.video(required=()))
async def change_video(
  video_id: str, request: Request, service: TheService, owner: Owner
) -> Response:
  """Changes fields of a video that is still queued."""
  values = await calls.values(request)
  return _shown(
    service,
    await run_in_threadpool(service.change, owner, video_id, values),
  )


@router.delete('/videos/{video_id}')
def delete_video(video_id: str, service: TheService, owner: Owner) -> Response:
  """Removes a video; stops it if it runs."""
  service.delete(owner, video_id)
  return JSONResponse(
    {'id': video_id, 'object': 'video.deleted', 'deleted': True}
  )


@router.head('/videos/{video_id}/content', include_in_schema=False)
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
  path = service.files.result(video_id, entry['name'])
  try:
    stat = path.stat()
  except FileNotFoundError as e:  # deleted in the meantime
    raise unknown_id('video', video_id) from e
  return FileResponse(
    path,
    stat_result=stat,
    media_type=entry['type'],
    filename=f'{video_id}-{entry["name"]}',
    content_disposition_type='inline',
  )


@router.post(
  '/videos/{video_id}/remix', openapi_extra=bodies.video(required=('prompt',))
)
async def remix_video(
  video_id: str, request: Request, service: TheService, owner: Owner
) -> Response:
  """Queues a video with another prompt and the settings of this one."""
  values = await calls.values(request)
  job = await run_in_threadpool(
    service.remix,
    owner,
    video_id,
    values,
    idempotency_key=calls.idempotency_key(request),
  )
  return _shown(service, job)


@router.post('/videos/{video_id}/cancel')
def cancel_video(video_id: str, service: TheService, owner: Owner) -> Response:
  """Cancels a video within one solver step."""
  return _shown(service, service.cancel(owner, video_id))
