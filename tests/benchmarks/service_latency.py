"""Answers among 100,000 jobs, and what the service adds to a video's sampling.

  python -m tests.benchmarks.service_latency [--jobs=100000] [--videos=5]

Answers are timed from the request's arrival at the application to the end of
its body, without the socket. Videos are those of the bundled model's defaults:
from POST to `completed`, as a client sees it that asks every 20 ms, and the
time of each stage of the same job: a busy machine's clock shows what others
compute, too, and the CPU's does not. Everything was compiled before. Prints the
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
from spacetime.serving import app as app_lib
from spacetime.serving import worker as worker_lib
from spacetime.serving.settings import ServeSettings
from tests.helpers import service as service_lib

COMPILE = '/jax/core/compile/backend_compile_duration'
PROMPT = 'a red 3 moves to the right'
CALLS = 200
SAMPLING = 'sampling, to pixels'


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


def clocks() -> np.ndarray:
  """Seconds (by the clock, of the process's CPU)."""
  return np.array([time.perf_counter(), time.process_time()])


@contextlib.contextmanager
def recording(pipeline: Pipeline, times: list):
  """Appends (label, clocks) of each stage of the worker, and of the first and
  last moment of sampling, to a list."""
  stage, write = worker_lib.Report.stage, pipeline.write

  def record(self, name):
    times.append((name, clocks()))
    stage(self, name)

  def timed(request, *, on_frames, **options):
    def sampled(frames_FHWC, metadata):
      times.append(('sampled', clocks()))
      return on_frames(frames_FHWC, metadata)

    times.append((SAMPLING, clocks()))
    return write(request, on_frames=sampled, **options)

  worker_lib.Report.stage, pipeline.write = record, timed
  try:
    yield
  finally:
    worker_lib.Report.stage = stage
    del pipeline.write


def videos(folder: pathlib.Path, count: int) -> None:
  """Times videos of one shape through the service."""
  pipelines = {'digits': Pipeline('digits', progress=False)}
  settings = {'state': str(folder), 'min_free_mb': 1}
  worker = worker_lib.Worker(
    ServeSettings(**settings), name='w', pipelines=pipelines
  )
  worker.warm_up()
  service = service_lib.make(
    settings.pop('state'),
    supervisor=service_lib.ThreadSupervisor(worker),
    **settings,
  )
  times, rows, compiled = [], [], []
  with service_lib.running(service) as url:

    def call(path, body=None):
      data = None if body is None else json.dumps(body).encode()
      request = urllib.request.Request(
        url + path, data, {'content-type': 'application/json'}
      )
      with urllib.request.urlopen(request) as response:
        return json.load(response)

    def make(seed):
      times[:] = [('POST', clocks())]
      video = call('/v1/videos', {'prompt': PROMPT, 'seed': seed})
      while video['status'] not in ('completed', 'failed'):
        time.sleep(0.02)
        video = call(f'/v1/videos/{video["id"]}')
      assert video['status'] == 'completed', video
      times.append(('completed', clocks()))
      names, stamps = zip(*times, strict=True)
      spent: dict[str, np.ndarray] = {}
      for name, seconds in zip(names, np.diff(stamps, axis=0), strict=False):
        spent[name] = spent.get(name, 0) + seconds
      return spent

    with recording(pipelines['digits'], times):
      make(0)
      with listening(compiled):
        rows = [make(i) for i in range(1, count + 1)]
  print(f'{count} videos, medians in seconds: by the clock, of the CPU')
  for name in rows[0]:
    show(name, [row[name] for row in rows])
  total = [sum(row.values()) for row in rows]
  show('POST to completed', total)
  added = [t - row[SAMPLING] for t, row in zip(total, rows, strict=True)]
  show('of which not sampling', added)
  print(f'programs compiled: {len(compiled)}')


def show(name: str, seconds: list) -> None:
  """Prints medians."""
  clock, cpu = np.median(seconds, 0)
  print(f'  {name:24} {clock:6.2f} {cpu:6.2f}')


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
