"""Progress as server-sent events, for as long as the key is valid."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import fastapi
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from spacetime.serving.errors import ApiError
from spacetime.serving.routes import calls
from spacetime.serving.routes.calls import Owner, TheService
from spacetime.serving.service import Service

EVENT_SECONDS = 0.2
ALIVE = ': alive\n\n'  # a comment, so that proxies keep the connection
ENDED = ('completed', 'failed')
router = fastapi.APIRouter(prefix='/v1', tags=['videos'])


@router.get('/videos/{video_id}/events')
async def video_events(
  video_id: str, request: Request, service: TheService, owner: Owner
) -> Response:
  """Progress of a video, as server-sent events, until it ends."""
  await run_in_threadpool(service.get, owner, video_id)
  is_valid = _validity(request, owner)
  return _events(_follow(service, owner, video_id, is_valid))


@router.get('/events')
async def all_events(
  request: Request, service: TheService, owner: Owner
) -> Response:
  """Progress of all videos of the key, as server-sent events."""
  return _events(_follow_all(service, owner, _validity(request, owner)))


def _validity(request: Request, owner: str) -> Callable[[], bool]:
  """Whether the key of a request is still its owner's: it may expire, or be
  removed from the file, while the stream lasts."""

  def is_valid() -> bool:
    try:
      return calls.get_owner(request) == owner
    except ApiError:
      return False

  return is_valid


def _events(events: AsyncIterator[str]) -> Response:
  return StreamingResponse(
    events,
    media_type='text/event-stream',
    headers={'cache-control': 'no-store', 'x-accel-buffering': 'no'},
  )


async def _follow(
  service: Service, owner: str, video_id: str, is_valid: Callable[[], bool]
) -> AsyncIterator[str]:
  """An event for each change of a video, the last when it ends."""
  last = None
  while is_valid():
    job = await run_in_threadpool(service.jobs.get, video_id, owner=owner)
    if job is None:
      yield f'event: deleted\ndata: {{"id": "{video_id}"}}\n\n'
      return
    text = json.dumps(service.show(job))
    if text != last:
      yield f'event: video\ndata: {text}\n\n'
    else:
      yield ALIVE
    last = text
    if job.status in ENDED:
      return
    await asyncio.sleep(EVENT_SECONDS)


async def _follow_all(
  service: Service, owner: str, is_valid: Callable[[], bool]
) -> AsyncIterator[str]:
  """An event for each change of an owner's newest videos, after their ids:
  what was deleted while a client was away is not among them."""
  last: dict[str, str] | None = None
  while is_valid():
    page, _ = await run_in_threadpool(
      service.jobs.page, owner, after=None, limit=50, descending=True
    )
    shown = {job.id: json.dumps(service.show(job)) for job in page}
    if last is None:
      yield f'event: snapshot\ndata: {json.dumps({"ids": [*shown]})}\n\n'
      last = {}
    for job_id, text in reversed(shown.items()):
      if last.get(job_id) != text:
        yield f'event: video\ndata: {text}\n\n'
    for job_id in last.keys() - shown.keys():
      if await run_in_threadpool(service.jobs.get, job_id, owner=owner) is None:
        yield f'event: deleted\ndata: {{"id": "{job_id}"}}\n\n'
    if shown == last:
      yield ALIVE
    last = shown
    await asyncio.sleep(EVENT_SECONDS)
