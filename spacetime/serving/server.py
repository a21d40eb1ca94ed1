"""The HTTP process: settings -> a running server."""

import dataclasses
import fcntl
from collections.abc import Mapping
from typing import Any

import uvicorn

from spacetime import SettingError
from spacetime.serving import app as app_lib
from spacetime.serving.service import Service
from spacetime.serving.settings import ServeSettings
from spacetime.serving.supervisor import Supervisor


def run(
  settings: ServeSettings,
  *,
  jax_config: Mapping[str, Any],
  mesh: Mapping[str, int] | None = None,
) -> None:
  """Serves until it is interrupted.

  Args:
    settings: settings of the service.
    jax_config: JAX's settings in the worker.
    mesh: devices along each axis; None is the first device.

  Raises:
    SettingError: another server uses the state folder, or a bad setting.
  """
  message = {
    'settings': dataclasses.asdict(settings),
    'jax': dict(jax_config),
    'mesh': None if mesh is None else dict(mesh),
  }
  if settings.process_id:
    from spacetime.serving import worker  # imports JAX

    worker.follow(message)
  settings.folder.mkdir(parents=True, exist_ok=True)
  with (settings.folder / 'server.lock').open('w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      raise SettingError(
        'state', settings.state, 'a folder that no other server uses'
      ) from e
    supervisor = Supervisor(message, settings.folder)
    app = app_lib.create(Service(settings, supervisor))
    uvicorn.run(
      app,
      host=settings.host,
      port=settings.port,
      log_level='warning',
      timeout_keep_alive=20,
      timeout_graceful_shutdown=2,
      server_header=False,
    )
