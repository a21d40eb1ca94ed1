"""Answers among 100,000 jobs, and what the service adds to a video's sampling.

  python -m tests.benchmarks.service_latency [--jobs=100000] [--videos=5]

Answers are timed from the request's arrival at the application to the end of
its body, without the socket. Videos are those of the bundled model's defaults:
from POST to `completed`, as a client sees it, against Pipeline.write of the
same request in the same process; everything compiled before. Prints the
programs that JAX compiled meanwhile: there must be none.
"""

import argparse
import asyncio
import contextlib
import json
import pathlib
import tempfile
import time
import urllib.request

import jax
import numpy as np

from spacetime.pipeline.pipeline import Pipeline
from spacetime.pipeline.request import Request
from spacetime.serving import app as app_lib
from spacetime.serving.settings import ServeSettings
from spacetime.serving.worker import Worker
from tests.helpers import service as service_lib

COMPILE = '/jax/core/compile/backend_compile_duration'
PROMPT = 'a red 3 moves to the right'
CALLS = 200


async def answer(app, path: str, query: str = ''):
  """Seconds until an application has answered: (by the clock, of the CPU)."""
  sent = []

  async def receive():
    return {'type': 'http.request', 'body': b'', 'more_body': False}

  async def send(message):
    sent.append(message)

  scope = {
    'type': 'http',
    'http_version': '1.1',
    'method': 'GET',
    'scheme': 'http',
    'path': path,
    'raw_path': path.encode(),
    'query_string': query.encode(),
    'root_path': '',
    'headers': [(b'host', b'127.0.0.1')],
    'client': ('127.0.0.1', 1),
    'server': ('127.0.0.1', 80),
  }
  began = np.array([time.perf_counter(), time.process_time()])
  await app(scope, receive, send)
  seconds = np.array([time.perf_counter(), time.process_time()]) - began
  assert sent[0]['status'] == 200, sent
  return seconds


def report(name: str, seconds: np.ndarray) -> None:
  """Prints medians and the slowest of a hundred; a busy machine's clock shows
  what others compute, too."""
  (clock, cpu), late = (
    1000 * np.median(seconds, 0),
    np.quantile(seconds, 0.99, 0),
  )
  print(
    f'{name}: median {clock:.2f} ms (CPU {cpu:.2f}), 99 % '
    f'{1000 * late[0]:.2f} ms'
  )


def answers(folder: pathlib.Path, count: int) -> None:
  """Times the list and the retrieval among many jobs."""
  service = service_lib.make(folder, sign='off')
  with service.jobs.database.transaction() as execute:
    execute(
      'insert into jobs (id, owner, created_at, status, model, prompt, params, '
      'seconds, size) with recursive n(i) as (select 0 union all select i + 1 '
      "from n where i < ?) select 'video_' || i, 'local', i, 'completed', "
      "'digits', 'a red 3', '{\"steps\": 2}', '2', '64x64' from n order by i",
      (count - 1,),
    )
  app = app_lib.create(service)

  async def run(path, query=''):
    return np.array([await answer(app, path, query) for _ in range(CALLS)])

  middle = f'video_{count // 2}'
  for name, path, query in (
    ('list, newest 20', '/v1/videos', 'limit=20'),
    ('list, 20 in the middle', '/v1/videos', f'limit=20&after={middle}'),
    ('retrieve', f'/v1/videos/{middle}', ''),
    ('health', '/health', ''),
  ):
    asyncio.run(run(path, query))
    report(f'{name} of {count}', asyncio.run(run(path, query)))


def videos(folder: pathlib.Path, count: int) -> None:
  """Times videos of one shape through the service."""
  pipelines = {'digits': Pipeline('digits', progress=False)}
  settings = {'state': str(folder), 'min_free_mb': 1}
  worker = Worker(ServeSettings(**settings), name='w', pipelines=pipelines)
  worker.warm_up()
  service = service_lib.make(
    settings.pop('state'),
    supervisor=service_lib.ThreadSupervisor(worker),
    **settings,
  )
  compiled = []
  with service_lib.running(service) as url:

    def call(path, body=None):
      data = None if body is None else json.dumps(body).encode()
      request = urllib.request.Request(
        url + path, data, {'content-type': 'application/json'}
      )
      with urllib.request.urlopen(request) as response:
        return json.load(response)

    def clocks():
      return np.array([time.perf_counter(), time.process_time()])

    def make(seed):
      began = clocks()
      video = call('/v1/videos', {'prompt': PROMPT, 'seed': seed})
      while video['status'] not in ('completed', 'failed'):
        time.sleep(0.01)
        video = call(f'/v1/videos/{video["id"]}')
      assert video['status'] == 'completed', video
      return clocks() - began

    def sample(seed):
      request = Request(
        prompt=PROMPT, seed=seed, out=str(folder / f'{seed}.mp4')
      )
      began = clocks()
      pipelines['digits'].write(request)
      return clocks() - began

    make(0)
    sample(1000)
    with listening(compiled):
      # In turns, since the machine's load changes.
      pairs = [(make(i), sample(1000 + i)) for i in range(1, count + 1)]
  service_s, sampling_s = np.array(pairs).transpose(1, 2, 0)
  for i, clock in enumerate(('by the clock', 'of the CPU')):
    print(
      f'{count} videos, seconds {clock}: POST to completed '
      f'{np.median(service_s[i]):.2f}, sampling and encoding alone '
      f'{np.median(sampling_s[i]):.2f}, added '
      f'{np.median(service_s[i] - sampling_s[i]):.2f}'
    )
  print(f'programs compiled: {len(compiled)}')


@contextlib.contextmanager
def listening(compiled: list):
  """Appends the seconds of each compilation."""

  def listen(event, seconds, **_):
    if event == COMPILE:
      compiled.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield
  jax.monitoring.unregister_event_duration_listener(listen)


def main():
  """Prints a line for each measurement."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--jobs', type=int, default=100_000)
  parser.add_argument('--videos', type=int, default=5, help='0 makes none')
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    answers(pathlib.Path(folder), options.jobs)
  if not options.videos:
    return
  with tempfile.TemporaryDirectory() as folder:
    videos(pathlib.Path(folder), options.videos)


if __name__ == '__main__':
  main()
