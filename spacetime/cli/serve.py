"""Serves videos over HTTP: OpenAI's video API, a page, durable jobs.

  spacetime serve --checkpoint=digits --state=service
  spacetime serve --host=0.0.0.0 --api_keys=api_keys.json

Then open http://127.0.0.1:8000, or use the official client:

  client = openai.OpenAI(base_url='http://127.0.0.1:8000/v1', api_key='none')
  video = client.videos.create_and_poll(prompt='a red 3 moves to the right')

Jobs and results are kept in the state folder; after a crash they go on. Needs
the extra [serve].
"""

from spacetime.cli import common, devices, mesh
from spacetime.serving.settings import ServeSettings

common.define_flags(ServeSettings)
mesh.define_flags()


def setup() -> None:
  """Nothing here: JAX runs in the worker process alone."""


def main() -> None:
  """Flags -> a server."""
  jax_config = devices.config()
  settings = ServeSettings(**common.flag_values(ServeSettings))
  try:
    from spacetime.serving import server
  except ModuleNotFoundError as e:
    raise ValueError(
      f'{e.name} is missing: pip install "spacetime-video[serve]"'
    ) from e
  if not settings.process_id:
    print(
      f'http://{settings.host}:{settings.port}  state in {settings.folder}',
      flush=True,
    )
  server.run(settings, jax_config=jax_config, mesh=mesh.value())
