"""Supervisor: starts the worker process, and starts it again when it dies."""

import contextlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from spacetime.media.files import atomic_write

COMMAND = (sys.executable, '-m', 'spacetime.serving.worker')
RETRY_SECONDS = (0.2, 1.0, 5.0, 15.0)  # before each start after a failure


class Supervisor:
  """A worker process and the questions that are put to it.

  Attributes:
    state: 'starting', 'ready' or 'failed'.
    failure: why the worker did not start.
    restarts: starts after the first.

  Args:
    message: settings of the worker, its first line of input.
    folder: the state folder; the models' sizes are kept there.
    command: command of the worker process.
  """

  def __init__(
    self,
    message: Mapping[str, Any],
    folder: pathlib.Path,
    *,
    command: Sequence[str] = COMMAND,
  ):
    self._command = list(command)
    self.state, self.failure, self.restarts = 'starting', '', 0
    self._message, self._cards = message, folder / 'models.json'
    self._process: subprocess.Popen | None = None
    self._answers: dict[int, queue.Queue] = {}
    self._count, self._lock = 0, threading.Lock()
    self._listening, self._stopping = threading.Event(), threading.Event()
    self._models = []
    if self._cards.exists():
      self._models = json.loads(self._cards.read_text())

  def start(self) -> None:
    """Starts the worker, in a thread that starts it again when it dies."""
    self._thread = threading.Thread(target=self._supervise, daemon=True)
    self._thread.start()

  def stop(self) -> None:
    """Ends the worker."""
    self._stopping.set()
    process = self._process
    if process is not None:
      with self._lock, contextlib.suppress(OSError):
        process.stdin.close()  # the worker ends when there are no questions
      try:
        process.wait(3)
      except subprocess.TimeoutExpired:
        process.kill()
    self._thread.join(10)

  @property
  def pid(self) -> int | None:
    """Process id of the worker."""
    return self._process.pid if self._process else None

  @property
  def models(self) -> list[dict[str, Any]]:
    """Each model with its default sizes, also while the worker starts."""
    return self._models

  def check(
    self, job: Mapping[str, Any], *, timeout: float = 30.0
  ) -> dict[str, Any] | None:
    """The worker's answer on a job to queue; None if it does not answer.

    Args:
      job: see worker.Worker.check.
      timeout: seconds to wait, also for a worker that starts.
    """
    began = time.monotonic()
    if not self._listening.wait(timeout):
      return None
    box: queue.Queue = queue.Queue(1)
    with self._lock:
      self._count += 1
      number = self._count
      self._answers[number] = box
    try:
      self._send({'question': number, **job})
      left = max(0.1, timeout - (time.monotonic() - began))
      message = box.get(timeout=left)
      return None if message and message.get('unchecked') else message
    except (OSError, ValueError, queue.Empty):
      return None
    finally:
      self._answers.pop(number, None)

  def _send(self, message: Mapping[str, Any]) -> None:
    with self._lock:
      process = self._process
      if process is None or process.stdin is None:
        raise OSError('no worker')
      process.stdin.write(json.dumps(message) + '\n')
      process.stdin.flush()

  def _supervise(self) -> None:
    failures = 0
    while not self._stopping.is_set():
      self.state = 'starting'
      began = time.monotonic()
      self._run()
      self._listening.clear()
      for box in list(self._answers.values()):
        box.put(None)
      if self._stopping.is_set():
        return
      lived = time.monotonic() - began
      failures = 0 if self.state == 'ready' or lived > 60 else failures + 1
      self.state = 'failed' if failures else 'starting'
      self.restarts += 1
      wait = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
      self._stopping.wait(wait)

  def _run(self) -> None:
    """Runs one worker process until it ends."""
    root = os.fspath(pathlib.Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH'))))
    process = subprocess.Popen(
      self._command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {'PYTHONPATH': path},
    )
    self._process = process
    with contextlib.suppress(OSError):  # it died; stdout ends
      self._send(self._message)
    for line in process.stdout:
      self._receive(json.loads(line))
    process.wait()
    with contextlib.suppress(OSError):  # of a message it did not read
      process.stdin.close()
    process.stdout.close()

  def _receive(self, message: dict[str, Any]) -> None:
    if 'failed' in message:
      self.failure = message['failed']
    if 'models' in message:
      self._models, self.failure = message['models'], ''
      with atomic_write(self._cards) as temporary:
        temporary.write_text(json.dumps(self._models))
      self._listening.set()
    if 'ready' in message:
      self.state = 'ready'
    box = self._answers.get(message.get('answer'))
    if box is not None:
      box.put(message)
