"""A model over two processes: the first serves, both compute."""

import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

from launch import local_pod
from spacetime.media import video_reader
from spacetime.pipeline.pipeline import Pipeline
from tests.helpers import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {'size': '32x32', 'frames': 5, 'steps': 2, 'seed': 3}
PROMPT = 'a red 3 moves to the right'


@pytest.fixture(scope='module')
def url(tmp_path_factory):
  """Address of a service of two processes with a device each."""
  folder, port = tmp_path_factory.mktemp('hosts'), local_pod.free_port()
  command = [
    *(sys.executable, '-m', 'spacetime', 'serve', f'--port={port}'),
    *('--min_free_mb=1', '--sign=off', '--policy=off', '--cpu_devices=1'),
    *('--mesh.context=2', '--num_processes=2', f'--files={folder}/files'),
    f'--coordinator=localhost:{local_pod.free_port()}',
    f'--compilation_cache={ROOT}/.cache/jax_tests',
  ]
  environment = dict(
    os.environ, PYTHONPATH=str(ROOT), XLA_FLAGS=xla_flags.COMPILE_QUICKLY
  )
  environment.pop('JAX_NUM_CPU_DEVICES', None)
  processes = [
    subprocess.Popen(
      [*command, f'--process_id={i}', f'--state={folder}/{i}'],
      cwd=ROOT,
      env=environment,
    )
    for i in range(2)
  ]
  address = f'http://127.0.0.1:{port}'
  try:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
      assert [process.poll() for process in processes] == [None, None]
      try:
        if call(address, '/health')['worker'] == 'ready':
          break
      except OSError:
        pass
      time.sleep(0.2)
    yield address
  finally:
    for process in processes:
      process.terminate()
    for process in processes:
      process.wait(60)


def call(url, path, body=None):
  data = None if body is None else json.dumps(body).encode()
  headers = {'content-type': 'application/json'}
  request = urllib.request.Request(url + path, data, headers)
  with urllib.request.urlopen(request, timeout=60) as answer:
    return json.load(answer)


def until(url, video, ready):
  deadline = time.monotonic() + 300
  while not ready(video):
    assert time.monotonic() < deadline, video
    time.sleep(0.05)
    video = call(url, f'/v1/videos/{video["id"]}')
  return video


def ended(video):
  return video['status'] in ('completed', 'failed')


def test_two_processes_run_a_job(url, tmp_path):
  video = call(url, '/v1/videos', {'prompt': PROMPT, **SMALL})
  video = until(url, video, ended)
  assert video['status'] == 'completed', video['error']
  path = f'{url}/v1/videos/{video["id"]}/content'
  with urllib.request.urlopen(path) as answer:
    (tmp_path / 'x.mp4').write_bytes(answer.read())
  frames_FHWC = video_reader.read_video(tmp_path / 'x.mp4').astype(int)
  alone = Pipeline('digits', progress=False)(PROMPT, **SMALL).frames
  # H.264 is between them.
  assert np.abs(frames_FHWC - alone).mean() < 6


def test_both_stop_at_a_cancelled_job_and_go_on(url):
  body = {'prompt': PROMPT, **SMALL, 'steps': 200}
  video = call(url, '/v1/videos', body)
  until(url, video, lambda video: video['steps_done'] > 0)
  call(url, f'/v1/videos/{video["id"]}/cancel', {})
  video = until(url, video, ended)
  assert video['error']['code'] == 'cancelled'
  refused = call(url, '/v1/videos', {'prompt': PROMPT, **SMALL, 'seed': 4})
  assert until(url, refused, ended)['status'] == 'completed'
