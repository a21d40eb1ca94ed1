"""Sends requests that schemathesis makes from the service's OpenAPI document.

  python -m tests.benchmarks.service_fuzz [--cases=1000]

Half of them name videos and webhooks that exist. An answer of 5xx, an error
that has not OpenAI's shape, or none within SECONDS is a failure; the program
prints each and exits with 1. The service has no worker: no model runs.
"""

import argparse
import collections
import pathlib
import sys
import tempfile
import time

import hypothesis
import schemathesis
from hypothesis import strategies

from tests.helpers import service as service_lib

SECONDS = 20
ENDLESS = '/v1/events'  # a stream that only the client ends
LIMITS = {'max_queued': 10**9, 'max_per_day': 10**9, 'max_pixels': 2**22}


def prepare(service) -> dict[str, list[str]]:
  """Makes what requests can name; returns ids by the parameter of paths."""
  jobs = [service.create('local', {'prompt': 'a red 3'}) for _ in range(3)]
  done = service.jobs.claim('w', lease_seconds=60, max_running=1)
  service_lib.complete(service, done)  # of which the events end
  hook = service.webhooks.create(
    'local',
    {
      'name': 'x',
      'url': 'https://hooks.example/x',
      'event_types': ['video.completed'],
    },
  )
  return {
    'video_id': [jobs[1].id, done.id],
    'webhook_id': [hook['id']],
    'model': list(service.models),
  }


def fuzz(url: str, known, *, cases: int, seed: int = 0):
  """Sends cases to every operation of a service.

  Args:
    url: its address.
    known: see prepare.
    cases: number of cases in all, or a few more.
    seed: of the generator.

  Returns:
    Counter of answers by (method, path, status), and failures as texts.
  """
  schema = schemathesis.openapi.from_url(f'{url}/openapi.json')
  operations = [result.ok() for result in schema.get_all_operations()]
  operations = [o for o in operations if o.path != ENDLESS]
  # What exists is deleted last.
  operations.sort(key=lambda o: o.method.lower() == 'delete')
  answers, failures = collections.Counter(), []

  def send(case, pick):
    for name, ids in known.items():
      if name in (case.path_parameters or {}) and pick < len(ids):
        case.path_parameters[name] = ids[pick]
        if case.path.endswith('/events'):  # a queued video's have no end
          case.path_parameters[name] = ids[-1]
    began = time.monotonic()
    try:
      response = case.call(base_url=url, timeout=SECONDS)
    except Exception as e:  # whatever the transport raises
      answers[case.method, case.path, type(e).__name__] += 1
      failures.append(f'{case.method} {case.path}: {e!r}'[:500])
      return
    status = response.status_code
    answers[case.method, case.path, status] += 1
    shaped = status < 400 or {'message', 'type', 'param', 'code'} == set(
      response.json()['error']
    )
    if status >= 500 or not shaped or time.monotonic() - began > SECONDS:
      failures.append(
        f'{status} {case.as_curl_command()}: {response.text}'[:2000]
      )

  while answers.total() < cases:  # some operations have few different cases
    share = -(-(cases - answers.total()) // len(operations))
    for operation in operations:
      run = hypothesis.given(operation.as_strategy(), strategies.integers(0, 3))
      run = hypothesis.settings(
        max_examples=share,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
      )(run(send))
      hypothesis.seed(seed)(run)()
    seed += 1
  return answers, failures


def main():
  """Prints the answers by operation and status, and every failure."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--cases', type=int, default=1000)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    service = service_lib.make(
      pathlib.Path(folder), webhook_hosts='hooks.example', sign='off', **LIMITS
    )
    known, began = prepare(service), time.monotonic()
    with service_lib.running(service) as url:
      answers, failures = fuzz(
        url, known, cases=options.cases, seed=options.seed
      )
  for (method, path, status), count in sorted(answers.items(), key=str):
    print(f'{count:5} {status} {method} {path}')
  for failure in failures:
    print('FAILED', failure)
  print(
    f'{answers.total()} cases, {len(failures)} failures, '
    f'{time.monotonic() - began:.0f} s'
  )
  sys.exit(bool(failures))


if __name__ == '__main__':
  main()
