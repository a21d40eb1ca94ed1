"""A service without worker processes, for tests."""

import contextlib
import threading
import time

import numpy as np
import uvicorn
from PIL import Image

from spacetime.media import video_writer
from spacetime.serving import app as app_lib
from spacetime.serving import renditions
from spacetime.serving.service import Service
from spacetime.serving.settings import ServeSettings

CARD = {
  'id': 'digits',
  'size': '64x64',
  'frames': 17,
  'fps': 8,
  'seconds': '2.125',
  'longest': 49,
  'example': 'a red 3',
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


def complete(service: Service, job, frames: int = 17):
  """Completes a claimed job by a clip that changes from red to blue."""
  work = service.files.work(job.id)
  work.mkdir(exist_ok=True)
  is_still = job.params.get('mode') == 'still'
  kind = job.params.get('format', 'png' if is_still else 'mp4')
  frames_FHWC = np.zeros((frames, 64, 64, 3), np.uint8)
  ramp_F = np.linspace(0, 255, frames).astype(np.uint8)
  frames_FHWC[..., 0], frames_FHWC[..., 2] = (
    255 - ramp_F[:, None, None],
    ramp_F[:, None, None],
  )
  variants = {}
  for variant, name, media_type in (
    ('video', f'video.{kind}', f'{"image" if is_still else "video"}/{kind}'),
    ('thumbnail', 'thumbnail.webp', 'image/webp'),
    ('spritesheet', 'spritesheet.jpg', 'image/jpeg'),
  ):
    variants[variant] = {'name': name, 'type': media_type}
  if is_still:
    Image.fromarray(frames_FHWC[0]).save(work / variants['video']['name'])
  else:
    path = work / variants['video']['name']
    video_writer.write_video(path, frames_FHWC, fps=8)
  (work / 'thumbnail.webp').write_bytes(renditions.thumbnail(frames_FHWC))
  (work / 'spritesheet.jpg').write_bytes(renditions.spritesheet(frames_FHWC))
  result = {
    'variants': variants,
    'frames': frames,
    'provenance': {'state': 'trusted', 'issuer': 'me', 'watermark': 'ab'},
  }
  service.files.finish(job.id, result)
  service.jobs.complete(job, result, size=1, keep=3600)


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
