"""The supervisor with a worker process of a few lines."""

import sys
import time

from spacetime.serving import supervisor

WORKER = """
import json, os, sys, time
print(json.dumps({'models': [{'id': 'm', 'pid': os.getpid()}]}), flush=True)
settings = json.loads(sys.stdin.readline())
print(json.dumps({'ready': True}), flush=True)
for line in sys.stdin:
  question = json.loads(line)
  if question['prompt'] == 'die':
    os._exit(9)
  answer = {'answer': question['question'], 'frames': settings['frames']}
  if question['prompt'] == 'odd':
    answer['unchecked'] = True
  print(json.dumps(answer), flush=True)
"""


def until(condition):
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_worker_is_started_again_and_answers(tmp_path):
  command = [sys.executable, '-c', WORKER]
  watcher = supervisor.Supervisor({'frames': 17}, tmp_path, command=command)
  watcher.start()
  try:
    assert watcher.check({'prompt': 'x'})['frames'] == 17
    until(lambda: watcher.state == 'ready')
    first = watcher.models[0]['pid']
    assert watcher.check({'prompt': 'odd'}) is None
    assert watcher.check({'prompt': 'die'}) is None  # at once, not in 30 s
    until(lambda: watcher.models[0]['pid'] != first)
    assert watcher.check({'prompt': 'x'})['frames'] == 17
    assert watcher.restarts == 1
  finally:
    watcher.stop()
  # The sizes of the models stay known while the next worker starts.
  assert supervisor.Supervisor({}, tmp_path).models[0]['id'] == 'm'


def test_worker_that_cannot_start(tmp_path):
  code = 'import json; print(json.dumps({"failed": "no such model"}))'
  command = [sys.executable, '-c', code]
  watcher = supervisor.Supervisor({}, tmp_path, command=command)
  watcher.start()
  try:
    until(lambda: watcher.state == 'failed')
    assert watcher.failure == 'no such model'
    assert watcher.check({'prompt': 'x'}, timeout=0.1) is None
  finally:
    watcher.stop()
