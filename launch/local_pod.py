"""Emulates a pod on one machine: several processes of several CPU devices.

  python launch/local_pod.py --processes=2 --devices=4 -- \\
    python -m spacetime train --config=experiments/digits.py:tiny --workdir=DIR

The processes meet on the loopback and compute together by gloo. What all but
the first say comes with their number in front. Ctrl-C and SIGTERM go to all of
them; when one fails, the others are ended.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

from absl import app, flags

_PROCESSES = flags.DEFINE_integer('processes', 2, 'How many.')
_DEVICES = flags.DEFINE_integer('devices', 4, 'CPU devices of each.')
_GRACE = flags.DEFINE_float(
  'grace', 20.0, 'Seconds that the others have to end after one has failed.'
)
_EMULATED = '--xla_force_host_platform_device_count'


def main(argv: list[str]) -> int:
  """Starts the command once per process; the first bad exit code, or 0."""
  command = argv[1:]
  if not command:
    raise app.UsageError('expected a command after --')
  if _PROCESSES.value < 1 or _DEVICES.value < 1:
    raise app.UsageError(
      f'--processes={_PROCESSES.value}, --devices={_DEVICES.value}: expected 1 '
      'or more'
    )
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
  tellers = [
    threading.Thread(target=tell, args=(index, process), daemon=True)
    for index, process in enumerate(running)
    if index
  ]
  for teller in tellers:
    teller.start()
  code = wait(running, grace=_GRACE.value)
  for teller in tellers:
    teller.join(timeout=5)
  return code


def free_port() -> int:
  """A port of the loopback that nothing listens to."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def environment(index: int, *, port: int) -> dict[str, str]:
  """That of one process."""
  xla = os.environ.get('XLA_FLAGS', '')
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(_DEVICES.value),
    'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
    'JAX_NUM_PROCESSES': str(_PROCESSES.value),
    'JAX_PROCESS_ID': str(index),
    'XLA_FLAGS': re.sub(rf'{_EMULATED}=\d+', '', xla).strip(),
  }


def tell(index: int, process: subprocess.Popen) -> None:
  """Passes on what a process says."""
  for line in process.stdout:
    print(f'[{index}] {line}', end='', file=sys.stderr, flush=True)


def send(running: list[subprocess.Popen], number: int) -> None:
  """A signal to all that still run."""
  for process in running:
    if process.poll() is None:
      process.send_signal(number)


def wait(running: list[subprocess.Popen], *, grace: float) -> int:
  """Until all have ended; ends the others when one fails."""
  code, until = 0, None
  while None in [process.poll() for process in running]:  # asks them all
    bad = [p.returncode for p in running if p.returncode]
    if bad and until is None:
      code, until = bad[0], time.monotonic() + grace
      print(
        f'process {[bool(p.returncode) for p in running].index(True)} ended '
        f'with code {code}; those that still run in {grace:.0f} s are ended',
        file=sys.stderr,
      )
    if until is not None and time.monotonic() > until:
      send(running, signal.SIGKILL)
    time.sleep(0.1)
  bad = [p.returncode for p in running if p.returncode]
  code = code or (bad[0] if bad else 0)
  return 128 - code if code < 0 else code  # as a shell tells a signal


if __name__ == '__main__':
  app.run(main)
