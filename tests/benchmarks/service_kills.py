"""Kills the worker or the server of a loaded service; counts what is lost.

  python -m tests.benchmarks.service_kills [--kills=30] [--jobs=40]
    [--postgres | --database=postgresql://...]

Each kill is a SIGKILL of the worker and of the server in turn; a server's
worker does not survive it. Both start again at once. Every kill falls while a
job is in progress, at a drawn share of its solver steps or in a drawn stage
after them. The jobs are of several modes and formats, the first one a minute
long in chunks, which is hit as often as a job may be. In the end every job must
be completed once, its files readable and signed, and the database intact; a
long video must have gone on from its last chunk. Exits with 1 otherwise, and if
too few kills hit a job. --postgres starts a PostgreSQL server of its own.
"""

import argparse
import base64
import collections
import contextlib
import json
import os
import pathlib
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import numpy as np

from spacetime.media import image_reader, video_reader, video_writer
from spacetime.provenance import keys as signing_keys
from spacetime.provenance import manifest
from spacetime.serving import database as database_lib
from spacetime.serving.jobs import ATTEMPTS, Job, Jobs
from tests.helpers import postgres

ENDED = 'none: it had ended'  # between the look at the job and the kill
STAGES = ('checking frames', 'encoding', 'signing', 'finishing')
# Of the kills, those that fall after sampling; of the attempts, those that are
# hit, except of the minute, each of whose attempts but the last is.
LATE, HIT = 0.3, 0.6
MINUTE = {'seconds': 60, 'steps': 4, 'size': '32x32'}


def bodies(count):
  """Requests of several modes and formats; the first is a minute long."""
  with tempfile.TemporaryDirectory() as folder:
    clip = pathlib.Path(folder) / 'clip.mp4'
    frames_FHWC = np.zeros((17, 64, 64, 3), np.uint8)
    frames_FHWC[:, 20:40, 20:40] = 200, 0, 0
    video_writer.write_video(clip, frames_FHWC, fps=8)
    data = base64.b64encode(clip.read_bytes()).decode()
  video = {'video': f'data:video/mp4;base64,{data}'}
  kinds = (
    {},
    {'mode': 'extend', 'seconds': 1, **video},
    {'mode': 'still'},
    {'mode': 'edit', 'strength': 0.8, **video},
    {'format': 'gif'},
    {'mode': 'loop', **video},
    {'format': 'webm'},
    {'seconds': 9, 'steps': 8},
    {'mode': 'connect', 'video2': video['video'], **video},
  )
  for number in range(count):
    body = {'prompt': f'a red {number % 10} bounces', 'seed': number}
    body |= {'size': '64x64', 'steps': 16}
    yield body | (kinds[number % len(kinds)] if number else MINUTE)


def send(service, ids, count):
  """Queues jobs, each until an answer arrives; fills in their ids."""
  dice = random.Random(1)
  for number, body in enumerate(bodies(count)):
    key = f'job-{number}'
    while (answer := service.fetch('POST', '/v1/videos', body, key)) is None:
      time.sleep(0.1)
    ids[number] = json.loads(answer)['id']
    time.sleep(dice.uniform(0, 3))


class Service:
  """The processes of a service.

  Args:
    folder: its state.
    database: URL of its database; '' is SQLite.
    port: its port.
  """

  def __init__(self, folder, database, port):
    self._folder, self._database, self._port = folder, database, port
    self.start()

  def start(self) -> None:
    """Starts the server, which starts its worker."""
    folder, database = self._folder, self._database
    command = [
      *(sys.executable, '-m', 'spacetime', 'serve', f'--state={folder}'),
      *(
        f'--port={self._port}',
        '--nowarm',
        '--max_queued=1000',
        '--min_free_mb=1',
      ),
      '--policy=off',  # classifiers are not the subject
      f'--sign={folder}/key',
      *((f'--database={database}', f'--files={folder}') if database else ()),
    ]
    self._server = subprocess.Popen(command)

  def kill_worker(self) -> bool:
    """Kills the worker; False if there is none."""
    tasks = pathlib.Path(f'/proc/{self._server.pid}/task')
    for path in tasks.glob('*/children'):
      with contextlib.suppress(OSError):
        for pid in map(int, path.read_text().split()):
          command = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
          if b'spacetime.serving.worker' in command:  # not a decoder
            os.kill(pid, signal.SIGKILL)
            return True
    return False

  def kill_server(self) -> bool:
    """Kills the server, and starts it again."""
    self._server.kill()
    self._server.wait()
    self.start()
    return True

  def fetch(self, method, path, body=None, key=None) -> bytes | None:
    """An answer, or None while the server is away."""
    headers = {'content-type': 'application/json'}
    if key:
      headers['idempotency-key'] = key
    data = None if body is None else json.dumps(body).encode()
    url = f'http://127.0.0.1:{self._port}{path}'
    request = urllib.request.Request(url, data, headers, method=method)
    try:
      with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()
    except urllib.error.HTTPError as e:
      print('refused', e.code, e.read()[:200])
      return None
    except OSError:
      return None

  def stop(self) -> None:
    """Ends the server."""
    self._server.terminate()
    self._server.wait()


def running(jobs: Jobs) -> Job | None:
  """The job in progress."""
  with jobs.database.reading() as execute:
    rows = execute("select id from jobs where status = 'in_progress'")
  return jobs.get(rows[0]['id']) if rows else None


class Aims:
  """Where each attempt of a job is hit: drawn once.

  Args:
    dice: random numbers.
    ids: ids of the jobs by number.
  """

  def __init__(self, dice, ids):
    self._dice, self._ids = dice, ids
    self._aims: dict[tuple[str, int], float | str | None] = {}

  def reached(self, job: Job) -> bool:
    """Whether a job in progress is where its attempt is to be hit."""
    key = job.id, job.attempt
    if key not in self._aims:
      self._aims[key] = self._draw(job)
    aim = self._aims[key]
    if aim is None:
      return False
    if isinstance(aim, str):
      return job.stage == aim
    done = job.steps_done / job.steps if job.steps else 0.0
    return bool(job.steps) and done >= aim

  def hit(self, job: Job) -> None:
    """An attempt is hit once."""
    self._aims[job.id, job.attempt] = None

  def _draw(self, job: Job) -> float | str | None:
    # A job that loses ATTEMPTS workers fails, by design.
    if job.attempt >= ATTEMPTS:
      return None
    if job.id == self._ids.get(0):
      return 0.9 * job.attempt / ATTEMPTS + self._dice.uniform(0, 0.1)
    if self._dice.random() > HIT:
      return None
    if self._dice.random() < LATE:
      return self._dice.choice(STAGES)
    return self._dice.uniform(0, 0.95)


def attack(service, jobs, ids, sender, options) -> dict:
  """Kills until all jobs have ended.

  Returns:
    'kinds': number of kills of the worker and of the server, 'stages': of the
    job that each kill fell on, 'steps': (first, last) solver step that was seen
    of each attempt of each job.
  """
  aims, began = Aims(random.Random(options.seed), ids), time.time()
  kinds, stages = collections.Counter(), collections.Counter()
  steps: dict[str, dict[int, tuple[int, int]]] = collections.defaultdict(dict)
  while True:
    job = running(jobs)
    if job is not None and job.steps_done:
      first, _ = steps[job.id].get(job.attempt, (job.steps_done, 0))
      steps[job.id][job.attempt] = first, job.steps_done
    count = kinds.total() - stages[ENDED]
    if job is not None and count < options.kills and aims.reached(job):
      aims.hit(job)
      kind = ('worker', 'server')[count % 2]
      kill = service.kill_worker if kind == 'worker' else service.kill_server
      if kill():
        now = jobs.get(job.id)
        has_ended = now.status != 'in_progress' and now.attempt == job.attempt
        stage = ENDED if has_ended else job.stage
        kinds[kind] += 1
        stages[stage] += 1
        mode = job.params.get('mode', job.params.get('format', 'text'))
        print(
          f'{time.time() - began:6.1f} s  {count + 1} {kind}: {mode}, attempt '
          f'{job.attempt}, {stage}, step {job.steps_done} of {job.steps}, '
          f'{jobs.counts()}',
          flush=True,
        )
    counts = jobs.counts()
    waiting = counts.get('queued') or counts.get('in_progress')
    if not sender.is_alive() and not waiting:
      return {'kinds': kinds, 'stages': stages, 'steps': steps}
    time.sleep(0.01)


def check(service, jobs, path, ids, steps, roots) -> dict[str, int]:
  """Counts what went wrong, by kind; prints each."""
  failures = dict.fromkeys(
    ('lost', 'doubled', 'unreadable', 'begun anew', 'leftovers'), 0
  )
  attempts = collections.Counter()
  for number, job_id in ids.items():
    job = jobs.get(job_id)
    if job is None or job.status != 'completed':
      failures['lost'] += 1
      print('lost', number, job)
      continue
    attempts[job.attempt] += 1
    wrong = _unreadable(service, job, path / 'results' / job_id, roots)
    failures['unreadable'] += bool(wrong)
    failures['begun anew'] += _begun_anew(job, steps[job_id])
    if wrong:
      print('unreadable', number, wrong)
  print('attempts of the completed jobs:', dict(sorted(attempts.items())))
  results = {folder.name for folder in (path / 'results').iterdir()}
  failures['doubled'] += len(jobs.ids()) - len(ids)
  failures['doubled'] += len(results - set(ids.values()))
  for name in ('work', 'inputs'):
    # Inputs of a request whose server died before it was queued are removed
    # by their age.
    left = {folder.name for folder in (path / name).iterdir()}
    failures['leftovers'] += len(left & set(ids.values()))
  return failures


def _unreadable(service, job, folder, roots) -> str:
  """Why the files of a completed job are not right, or ''."""
  try:
    name = job.result['variants']['video']['name']
    read = video_reader.read_video
    if name.endswith('.png'):
      read = lambda path: image_reader.read_image(path)[None]  # noqa: E731
    if len(read(folder / name)) != job.result['frames']:
      return 'frames are missing'
    for variant, file in job.result['variants'].items():
      path = f'/v1/videos/{job.id}/content?variant={variant}'
      data = service.fetch('GET', path)
      if data != (folder / file['name']).read_bytes() or not data:
        return f'{variant} over HTTP'
      if variant != 'manifest':
        report = manifest.verify(folder / file['name'], roots=roots)
        if report.state != 'trusted':
          return f'{variant} is {report.state}'
  except (OSError, ValueError) as e:
    return str(e)
  return ''


def _begun_anew(job, steps) -> int:
  """Attempts of a long video that repeated more than the chunk that ran."""
  chunks = len(job.result['metadata'].get('chunks', ()))
  if chunks < 2:
    return 0
  each, count = job.steps / chunks, 0
  for attempt, (first, _) in steps.items():
    before = max((steps[a][1] for a in steps if a < attempt), default=0)
    if before:
      print(
        f'{chunks} chunks of {each:.0f} steps: attempt {attempt} from step '
        f'{first}, after {before}'
      )
    count += first <= before - 2 * each
  return count


def integrity(path, database) -> int:
  """1 if the database is damaged."""
  if not database:
    connection = sqlite3.connect(path / 'jobs.sqlite')
    answer = connection.execute('pragma integrity_check').fetchone()[0]
    return int(answer != 'ok')
  command = [f'{postgres.binaries()}/pg_amcheck', '--install-missing']
  return subprocess.run([*command, database]).returncode


def main():
  """Prints a line for each kill, then the counts."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--kills', type=int, default=30)
  parser.add_argument('--jobs', type=int, default=40)
  parser.add_argument('--database', default='')
  parser.add_argument('--postgres', action='store_true')
  parser.add_argument('--port', type=int, default=8377)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  folder = tempfile.mkdtemp(prefix='spacetime-kills-')
  key, began = signing_keys.make(f'{folder}/key'), time.time()
  with contextlib.ExitStack() as stack:
    database = options.database
    if options.postgres:
      database = stack.enter_context(postgres.running())
    service = Service(folder, database, options.port)
    stack.callback(service.stop)
    path = pathlib.Path(folder)
    jobs = Jobs(database_lib.connect(database, path))
    stack.callback(jobs.database.close)  # PostgreSQL waits for connections
    ids: dict[int, str] = {}
    sender = threading.Thread(target=send, args=(service, ids, options.jobs))
    sender.start()
    done = attack(service, jobs, ids, sender, options)
    failures = check(service, jobs, path, ids, done['steps'], [key.root])
    failures['integrity'] = integrity(path, database)
  kills = done['kinds'].total()
  during = kills - done['stages'][ENDED]
  print(
    f'{kills} kills ({dict(done["kinds"])}), {during} during a job '
    f'({dict(done["stages"])}); {len(ids)} jobs, {time.time() - began:.0f} s: '
    f'{failures}'
  )
  sys.exit(any(failures.values()) or during < options.kills)


if __name__ == '__main__':
  main()
