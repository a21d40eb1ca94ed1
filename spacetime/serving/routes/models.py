"""Models, health and metrics."""

from typing import Any

import fastapi
from fastapi.responses import JSONResponse, Response

import spacetime
from spacetime.serving import errors, metrics
from spacetime.serving.routes.calls import Owner, TheService
from spacetime.serving.service import MIB, Service

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


def _model(service: Service, name: str) -> dict[str, Any]:
  card = {k: v for k, v in service.models[name].items() if k != 'id'}
  return {
    'id': name,
    'object': 'model',
    'created': int(service.began),
    'owned_by': 'spacetime',
    **card,
  }
