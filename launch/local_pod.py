"""Emulates a pod on one machine: several processes of several CPU devices.

  python launch/local_pod.py --processes=2 --devices=4 -- \\
    python -m spacetime train --config=digits_pixels:tiny --workdir=DIR

The processes connect on the loopback interface and compute together by gloo.
Output of all processes but the first is prefixed with their number. Ctrl-C and
SIGTERM are sent to all of them; when one fails, the others are ended.
"""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # run as a script

from spacetime.cli import common  # noqa: E402

_PROCESSES = flags.DEFINE_integer('processes', 2, 'Number of processes.')
_DEVICES = flags.DEFINE_integer(
  'devices', 4, 'Number of CPU devices of each process.'
)
_GRACE = flags.DEFINE_float(
  'grace', 20.0, 'Seconds until the others are killed after one has failed.'
)
_EMULATED = '--xla_force_host_platform_device_count'


def main(command: list[str]) -> int:
  """Starts the command once per process; returns the first bad exit code."""
  if not command:
    raise ValueError('expected a command after --; see --help')
  for flag in (_PROCESSES, _DEVICES):
    if flag.value < 1:
      raise ValueError(f'--{flag.name}={flag.value}: expected 1 or more')
  port = free_port()
  running = [
    subprocess.Popen(
      command,
      env=environment(index, port=port),
      stdout=None if index == 0 else subprocess.PIPE,
      stderr=None if index == 0 else subprocess.STDOUT,
      text=True,
      errors='replace',
      start_new_session=True,  # Ctrl-C comes through this process alone
    )
    for index in range(_PROCESSES.value)
  ]
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: send(running, signal.SIGTERM))
  readers = [
    threading.Thread(target=relay, args=(index, process), daemon=True)
    for index, process in enumerate(running)
    if index
  ]
  for reader in readers:
    reader.start()
  code = wait(running, grace=_GRACE.value)
  for reader in readers:
    reader.join(timeout=5)
  return code


def free_port() -> int:
  """A free port of the loopback interface."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def environment(index: int, *, port: int) -> dict[str, str]:
  """Environment variables of one process."""
  xla = os.environ.get('XLA_FLAGS', '')
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(_DEVICES.value),
    'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
    'JAX_NUM_PROCESSES': str(_PROCESSES.value),
    'JAX_PROCESS_ID': str(index),
    'XLA_FLAGS': re.sub(rf'{_EMULATED}=\d+', '', xla).strip(),
  }


def relay(index: int, process: subprocess.Popen) -> None:
  """Prints the output of a process with its number."""
  for line in process.stdout:
    print(f'[{index}] {line}', end='', file=sys.stderr, flush=True)


def send(running: list[subprocess.Popen], number: int) -> None:
  """Sends a signal to the processes that still run."""
  for process in running:
    if process.poll() is None:
      process.send_signal(number)


def wait(running: list[subprocess.Popen], *, grace: float) -> int:
  """Waits for all processes; ends the others when one fails."""
  code, until = 0, None
  while None in [process.poll() for process in running]:  # polls each of them
    bad = [p.returncode for p in running if p.returncode]
    if bad and until is None:
      code, until = bad[0], time.monotonic() + grace
      print(
        f'process {[bool(p.returncode) for p in running].index(True)} ended '
        f'with code {code}; the others have {grace:.0f} s to end',
        file=sys.stderr,
      )
    if until is not None and time.monotonic() > until:
      send(running, signal.SIGKILL)
    time.sleep(0.1)
  bad = [p.returncode for p in running if p.returncode]
  code = code or (bad[0] if bad else 0)
  return 128 - code if code < 0 else code  # a signal, as shells report it


if __name__ == '__main__':
  common.run(main, docstring=__doc__, operands=True)
