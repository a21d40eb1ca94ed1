"""A service without worker processes, for tests."""

import contextlib
import threading
import time

import uvicorn

from spacetime.serving import app as app_lib
from spacetime.serving.service import Service
from spacetime.serving.settings import ServeSettings

CARD = {
  'id': 'digits',
  'size': '64x64',
  'frames': 17,
  'fps': 8,
  'seconds': '2.125',
  'longest': 49,
}
SIZE = {'frames': 17, 'height': 64, 'width': 64, 'fps': 8, 'seconds': '2.125'}


class FakeSupervisor:
  """Accepts every job as a clip of 17 frames of 64x64."""

  state, failure, restarts, models = 'ready', '', 0, (CARD,)

  def __init__(self, answer=SIZE):
    self.answer = answer

  def start(self):
    pass

  stop = start

  def check(self, job, **_):
    return self.answer


class ThreadSupervisor(FakeSupervisor):
  """Runs a Worker in a thread of this process."""

  def __init__(self, worker):
    self.worker, self.models = worker, worker.models()
    self.stopping = threading.Event()

  def start(self):
    self.thread = threading.Thread(target=self._run)
    self.thread.start()

  def stop(self):
    self.stopping.set()
    self.thread.join()

  def check(self, job, **_):
    return self.worker.check(job)

  def _run(self):
    while not self.stopping.is_set():
      if not self.worker.run_next():
        time.sleep(0.01)


def make(folder, *, supervisor=None, **settings) -> Service:
  """A service whose state is in a folder."""
  settings = {'state': str(folder), 'min_free_mb': 1, **settings}
  return Service(ServeSettings(**settings), supervisor or FakeSupervisor())


@contextlib.contextmanager
def running(service: Service):
  """Yields the URL of a service in a thread of this process."""
  config = uvicorn.Config(
    app_lib.create(service), port=0, log_level='error', timeout_keep_alive=1
  )
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run)
  thread.start()
  try:
    while not server.started:
      time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f'http://127.0.0.1:{port}'
  finally:
    server.should_exit = True
    thread.join()
