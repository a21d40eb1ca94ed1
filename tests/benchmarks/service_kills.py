"""Kills the worker or the server of a loaded service; counts what is lost.

  python -m tests.benchmarks.service_kills [--kills=30] [--jobs=40]
    [--database=postgresql://...]

Each kill is a SIGKILL of the worker, or of the server, which its worker does
not survive; both start again at once. In the end every job must be completed
once, its files readable, and the database intact. Exits
with 1 otherwise.
"""

import argparse
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

from spacetime.media import video_reader
from spacetime.provenance import keys as signing_keys
from spacetime.serving import database as database_lib
from spacetime.serving.jobs import ATTEMPTS, Jobs

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
    print('refused', e.code, e.read()[:200])
    return None
  except OSError:
    return None


def send(ids, count):
  """Queues jobs, each until an answer arrives; fills in their ids."""
  dice = random.Random(1)
  for number in range(count):
    # Some are long, so that they are resumed from their last chunk.
    body = {'prompt': f'a red {number % 10} bounces', 'seed': number}
    body |= {'size': '32x32', 'steps': 2, 'frames': 5}
    if number % 8 == 0:
      body['seconds'] = 3
    while (job := call('POST', '/v1/videos', body, f'job-{number}')) is None:
      time.sleep(0.1)
    ids[number] = job['id']
    time.sleep(dice.uniform(0, 4))


def start(folder, database):
  """The server's process."""
  command = [
    *(sys.executable, '-m', 'spacetime', 'serve', f'--state={folder}'),
    *(f'--port={PORT}', '--nowarm', '--max_queued=1000', '--min_free_mb=1'),
    '--policy=off',  # sampling and classifiers are not the subject
    *((f'--database={database}', f'--files={folder}') if database else ()),
    *((f'--sign={folder}/key',) if database else ()),
  ]
  return subprocess.Popen(command)


def worker_pids(server):
  """Process ids of a server's children, whichever thread started them."""
  pids = []
  for path in pathlib.Path(f'/proc/{server.pid}/task').glob('*/children'):
    with contextlib.suppress(OSError):
      pids += map(int, path.read_text().split())
  return pids


def running(jobs):
  """(id, attempt) of the job in progress, or None."""
  with jobs.database.reading() as execute:
    rows = execute("select id, attempt from jobs where status = 'in_progress'")
  return (rows[0]['id'], rows[0]['attempt']) if rows else None


def main():
  """Prints a line for each kill, then the counts."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--kills', type=int, default=30)
  parser.add_argument('--jobs', type=int, default=40)
  parser.add_argument('--database', default='')
  parser.add_argument('--pause', type=float, default=1.5)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  dice = random.Random(options.seed)
  folder = tempfile.mkdtemp(prefix='spacetime-kills-')
  if options.database:
    signing_keys.make(f'{folder}/key')
  server = start(folder, options.database)
  path = pathlib.Path(folder)
  jobs = Jobs(database_lib.connect(options.database, path))
  ids: dict[int, str] = {}
  sender = threading.Thread(target=send, args=(ids, options.jobs), daemon=True)
  sender.start()
  kills, hit, began = 0, None, time.time()
  while True:
    # Each kill hits another attempt, not a worker that has yet to begin. A job
    # that loses five workers fails, by design.
    job = running(jobs)
    is_new = job is not None and job != hit and job[1] < ATTEMPTS - 1
    if kills < options.kills and is_new:
      hit = job
      time.sleep(dice.uniform(0.05, options.pause))
      kill_server = dice.random() < 0.3
      pids = [server.pid] if kill_server else worker_pids(server)
      for pid in pids:
        os.kill(pid, signal.SIGKILL)
        kills += 1
        kind = 'server' if kill_server else 'worker'
        counts = jobs.counts()
        print(f'{time.time() - began:6.1f} s  {kills} {kind} {counts}')
      if kill_server:
        server.wait()
        server = start(folder, options.database)
    counts = jobs.counts()
    waiting = counts.get('queued') or counts.get('in_progress')
    if not sender.is_alive() and not waiting:
      break
    time.sleep(0.05)
  failures = check(jobs, path, ids, options.database)
  print(
    f'{kills} kills, {len(ids)} jobs, {time.time() - began:.0f} s: {failures}'
  )
  server.terminate()
  server.wait()
  sys.exit(any(failures.values()))


def check(jobs, path, ids, database) -> dict[str, int]:
  """Counts what went wrong, by kind; prints each."""
  failures = dict.fromkeys(
    ('lost', 'doubled', 'unreadable', 'leftovers', 'integrity'), 0
  )
  attempts = {}
  for number, job_id in ids.items():
    job = jobs.get(job_id)
    if job is None or job.status != 'completed':
      failures['lost'] += 1
      print('lost', number, job)
      continue
    attempts[job.attempt] = attempts.get(job.attempt, 0) + 1
    folder = path / 'results' / job_id
    try:
      frames = video_reader.read_video(folder / 'video.mp4')
      wrong = len(frames) != job.result['frames']
      for variant in job.result['variants'].values():
        wrong |= not (folder / variant['name']).stat().st_size
    except (OSError, ValueError) as e:
      print(e)
      wrong = True
    failures['unreadable'] += wrong
  print('attempts of the completed jobs:', attempts)
  failures['doubled'] = len(jobs.ids()) - len(ids)
  failures['leftovers'] = len(list((path / 'work').iterdir()))
  results = {folder.name for folder in (path / 'results').iterdir()}
  failures['doubled'] += len(results - set(ids.values()))
  if not database:
    connection = sqlite3.connect(path / 'jobs.sqlite')
    answer = connection.execute('pragma integrity_check').fetchone()[0]
    failures['integrity'] = int(answer != 'ok')
  return failures


if __name__ == '__main__':
  main()
