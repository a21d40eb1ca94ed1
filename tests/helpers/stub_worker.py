"""A worker process of the service that needs no model: clips of two colours.

Speaks with the supervisor, claims jobs and reports steps as
spacetime.serving.worker does. A job has STEPS steps by default.
"""

import json
import os
import sys
import threading
import time

from spacetime.serving import database
from spacetime.serving.jobs import Jobs
from spacetime.serving.settings import ServeSettings
from tests.helpers import service as service_lib

COMMAND = (sys.executable, '-m', 'tests.helpers.stub_worker')
STEPS, STEP_SECONDS = 8, 0.3  # of a step


class Stub:
  """The part of a Service that complete() uses."""

  def __init__(self, settings: ServeSettings):
    from spacetime.serving.files import Files

    self.files = Files(settings.files_folder, bucket=settings.bucket)
    self.jobs = Jobs(database.connect(settings.database, settings.folder))


def run(stub: Stub) -> None:
  """Runs jobs for ever."""
  stub.jobs.release('stub')
  while True:
    job = stub.jobs.claim('stub', lease_seconds=60, max_running=1)
    if job is None:
      time.sleep(0.02)
      continue
    steps = job.params.get('steps', STEPS)
    for step in range(1 + steps):
      goes_on = stub.jobs.beat(
        job,
        lease_seconds=60,
        stage='sampling',
        steps_done=step,
        steps=steps,
      )
      if not goes_on:
        break
      time.sleep(STEP_SECONDS)
    if goes_on:
      service_lib.complete(stub, job)
    else:
      error = {'code': 'cancelled', 'message': 'The job was cancelled.'}
      stub.jobs.fail(job, error, keep=3600)


def main() -> None:
  """stdin -> settings, then questions; stdout -> answers."""
  message = json.loads(sys.stdin.readline())
  stub = Stub(ServeSettings(**message['settings']))
  print(json.dumps({'models': [service_lib.CARD]}), flush=True)
  print(json.dumps({'ready': True}), flush=True)
  threading.Thread(target=run, args=(stub,), daemon=True).start()
  for line in sys.stdin:
    job = json.loads(line)
    answer = {'answer': job['question'], **service_lib.SIZE}
    if 'dragon' in job['prompt']:
      answer['warnings'] = ['the model knows no dragon']
    print(json.dumps(answer), flush=True)
  os._exit(0)


if __name__ == '__main__':
  main()
