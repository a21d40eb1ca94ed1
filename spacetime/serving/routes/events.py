"""Progress as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator

import fastapi
from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from spacetime.serving.routes.calls import Owner, TheService
from spacetime.serving.service import Service

EVENT_SECONDS = 0.2
ENDED = ('completed', 'failed')
router = fastapi.APIRouter(prefix='/v1', tags=['videos'])


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
