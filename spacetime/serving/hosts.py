"""A model over several hosts: process 0 leases jobs, all processes run them.

All processes compute the same programs in the same order (JAX is
multi-controller), so that everything that process 0 decides alone, such as a
job, its end or a refusal of its frames, is broadcast before the others go on.
A process that fails otherwise ends; its group is started again, and the lease
of its job runs out.
"""

import json
import os
import pathlib
import tempfile
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from spacetime.pipeline.pipeline import Pipeline
from spacetime.serving import job_request
from spacetime.serving.files import Files

LENGTH = 2**18  # bytes of a broadcast job
GONE = 70  # exit code of a process whose group must start again


class StoppedError(Exception):
  """The job was cancelled, deleted, refused or given to another worker."""


def count() -> int:
  """Number of processes that share the models."""
  return jax.process_count()


def share(job: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
  """Sends a message of process 0 to all processes.

  Args:
    job: the message; None, which only asks whether the others live, and for
      the processes that receive.

  Returns:
    The message, on every process.
  """
  data = json.dumps(job).encode()
  if len(data) > LENGTH:
    raise ValueError(f'a job of {len(data)} bytes; expected at most {LENGTH}')
  buffer = np.full(LENGTH, ord(' '), np.uint8)
  buffer[: len(data)] = np.frombuffer(data, np.uint8)
  received = multihost_utils.broadcast_one_to_all(buffer)
  return json.loads(np.asarray(received, np.uint8).tobytes())


def on_first(call: Callable[[], Any]) -> Any:
  """Calls a function on process 0, of which the others only learn its end.

  Returns:
    Its result; None on the others.

  Raises:
    StoppedError: on the others, if the call raised on process 0, where its
      own exception is raised.
  """
  if count() == 1:
    return call()
  result, error = None, None
  if jax.process_index() == 0:
    try:
      result = call()
    except Exception as e:
      error = e
  failed = multihost_utils.broadcast_one_to_all(np.int32(error is not None))
  if error is not None:
    raise error
  if failed:
    raise StoppedError
  return result


def end_group() -> None:
  """Ends this process, and so its group, after an error of one process."""
  if count() > 1:
    os._exit(GONE)


def follow(pipelines: Mapping[str, Pipeline], files: Files) -> None:
  """Runs the jobs of process 0 for ever, on any other process.

  Args:
    pipelines: the pipeline of each model name, as on process 0.
    files: files of the jobs; inputs must be the same as on process 0.
  """
  while True:
    job = share()
    if job is None:
      continue
    try:
      _take_part(pipelines[job['model']], files, job)
    except (StoppedError, ValueError):
      pass  # of the job; process 0 reports it
    except BaseException:
      traceback.print_exc()
      os._exit(GONE)


def _take_part(pipeline: Pipeline, files: Files, job: dict[str, Any]) -> None:
  """Computes this process's part of a job; its file is thrown away."""
  with tempfile.TemporaryDirectory() as folder:
    inputs = files.inputs(job['id'])
    if job['params'].get('inputs'):
      inputs = files.fetch_inputs(job['id'])
    request = job_request.build(
      job['prompt'],
      job['params'],
      pipeline.engine,
      inputs=inputs,
      out=pathlib.Path(folder) / job['name'],
    )

    def on_frames(frames_FHWC, metadata):
      on_first(lambda: None)
      return frames_FHWC

    pipeline.write(
      request,
      callback=lambda done, steps: on_first(lambda: None),
      on_frames=on_frames,
    )
