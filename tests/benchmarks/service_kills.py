"""Kills the worker or the server of a loaded service; counts what is lost.

  python -m tests.benchmarks.service_kills [--kills=30] [--jobs=40]
    [--database=postgresql://...]

Each kill is a SIGKILL of the worker, or of the server, which its worker does
not survive; both start again at once. In the end every job must be completed
once, its file readable, and the database intact.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from spacetime.media import video_reader
from spacetime.provenance import keys as signing_keys
from spacetime.serving import database as database_lib
from spacetime.serving.jobs import Jobs

PORT = 8377
URL = f'http://127.0.0.1:{PORT}'


def call(method, path, body=None, key=None):
  """JSON of an answer, or None while the server is away."""
  headers = {'content-type': 'application/json'}
  if key:
    headers['idempotency-key'] = key
  data = None if body is None else json.dumps(body).encode()
  request = urllib.request.Request(URL + path, data, headers, method=method)
  try:
    with urllib.request.urlopen(request, timeout=60) as answer:
      return json.load(answer)
  except urllib.error.HTTPError as e:
    print('refused', e.code, e.read()[:200], flush=True)
    return None
  except OSError:
    return None


def start(folder, database):
  """The server's process."""
  command = [
    *(sys.executable, '-m', 'spacetime', 'serve', f'--state={folder}'),
    *(f'--port={PORT}', '--nowarm', '--max_queued=1000', '--min_free_mb=1'),
    *((f'--database={database}', f'--files={folder}') if database else ()),
    *((f'--sign={folder}/key',) if database else ()),
  ]
  return subprocess.Popen(command)


def worker_pids(server):
  """Process ids of a server's children."""
  path = pathlib.Path(f'/proc/{server.pid}/task/{server.pid}/children')
  try:
    return [int(pid) for pid in path.read_text().split()]
  except OSError:
    return []


def running(jobs):
  """Whether a job is in progress."""
  return jobs.counts().get('in_progress', 0) > 0


def main():
  """Prints a line for each kill, then the counts."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--kills', type=int, default=30)
  parser.add_argument('--jobs', type=int, default=40)
  parser.add_argument('--database', default='')
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  dice = random.Random(options.seed)
  folder = tempfile.mkdtemp(prefix='spacetime-kills-')
  if options.database:
    signing_keys.make(f'{folder}/key')
  server = start(folder, options.database)
  path = pathlib.Path(folder)
  ids, waiting = {}, list(range(options.jobs))
  jobs, kills, began = None, 0, time.time()
  while True:
    if waiting:
      number = waiting[0]
      # Some are long, so that they are resumed from their last chunk.
      body = {'prompt': f'a red {number % 10} bounces', 'steps': 3}
      body['seed'] = number
      if number % 8 == 0:
        body['seconds'] = 9
      job = call('POST', '/v1/videos', body, key=f'job-{number}')
      if job is None:
        time.sleep(0.3)
      else:
        ids[number] = job['id']
        waiting.pop(0)
    if jobs is None and ids:
      jobs = Jobs(database_lib.connect(options.database, path))
    if jobs is not None and kills < options.kills and running(jobs):
      time.sleep(dice.uniform(0.05, 1.0))
      kill_server = dice.random() < 0.3
      pids = [server.pid] if kill_server else worker_pids(server)
      for pid in pids:
        os.kill(pid, signal.SIGKILL)
        kills += 1
        kind = 'server' if kill_server else 'worker'
        print(f'{time.time() - began:6.1f} s  kill {kills}: {kind}', flush=True)
      if kill_server:
        server.wait()
        server = start(folder, options.database)
      while jobs.counts().get('in_progress', 0) and worker_pids(server) == []:
        time.sleep(0.1)
    if jobs is not None and not waiting:
      counts = jobs.counts()
      if not counts.get('queued') and not counts.get('in_progress'):
        break
    time.sleep(0.05)
  counts = jobs.counts()
  lost = [n for n, job_id in ids.items() if jobs.get(job_id) is None]
  unreadable = 0
  attempts = {}
  for job_id in ids.values():
    job = jobs.get(job_id)
    attempts[job.attempt] = attempts.get(job.attempt, 0) + 1
    if job.status == 'completed':
      file = path / 'results' / job_id / 'video.mp4'
      frames = video_reader.read_video(file)
      unreadable += len(frames) != job.result['frames']
    else:
      print(job.id, job.error)
  doubled = len(jobs.ids()) - len(ids)
  left = list((path / 'work').iterdir())
  integrity = 'not SQLite'
  if not options.database:
    connection = sqlite3.connect(path / 'jobs.sqlite')
    integrity = connection.execute('pragma integrity_check').fetchone()[0]
  print(
    f'{kills} kills, {len(ids)} jobs: {counts}; lost {len(lost)}, doubled '
    f'{doubled}, unreadable {unreadable}, unfinished folders {len(left)}; '
    f'attempts {attempts}; integrity {integrity}; {time.time() - began:.0f} s'
  )
  server.terminate()
  server.wait()


if __name__ == '__main__':
  main()
