"""Lock of a work directory, which only one run at a time may write to."""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from absl import logging
from etils import epath

from spacetime.checkpoint import paths

LOCK = 'run.lock'
BEAT = 10.0  # seconds between renewals


@contextlib.contextmanager
def held(workdir: paths.Path, *, beat: float = BEAT) -> Iterator[None]:
  """Locks the directory while the block runs.

  The lock names host and process, and its holder renews it. The lock of a
  process that has ended is taken over: at once on the same machine, else after
  three beats without a renewal. Folders that are made for it, and are still
  empty afterwards, go with it: what is refused leaves nothing behind.

  Args:
    workdir: the run's directory.
    beat: seconds between renewals.

  Raises:
    ValueError: another run is writing to the directory.
  """
  path = paths.absolute(workdir) / LOCK
  mine = dict(_here(), id=uuid.uuid4().hex, beat=0)
  other = _read(path)
  if other is not None:
    if _alive(path, other, beat):
      raise ValueError(
        f'{workdir}: another run is writing to it, process {other.get("pid")} '
        f'on {other.get("host")}; end that one, or use another folder'
      )
    logging.warning('%s: left by a run that has ended; taken over', path)
  created = _absent(path.parent)
  paths.write_file(path, json.dumps(mine).encode())
  done = threading.Event()
  thread = threading.Thread(
    target=_renew, args=(path, mine, beat, done), daemon=True
  )
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
    if (_read(path) or {}).get('id') == mine['id']:
      path.unlink(missing_ok=True)
      with contextlib.suppress(OSError):  # one that is not empty
        for folder in created:
          folder.rmdir()


def _absent(folder: epath.Path) -> list[pathlib.Path]:
  """The folder and those above it that do not exist, the lowest first; none in
  a bucket, which has no folders."""
  if '://' in os.fspath(folder):
    return []
  local = pathlib.Path(folder)
  return [path for path in (local, *local.parents) if not path.exists()]


def _renew(path, mine: dict, beat: float, done: threading.Event) -> None:
  while not done.wait(beat):
    mine['beat'] += 1
    try:
      other = _read(path) or mine
      if other['id'] != mine['id']:
        logging.error(
          '%s: taken over by process %s on %s',
          path,
          other['pid'],
          other['host'],
        )
        return
      paths.write_file(path, json.dumps(mine).encode())
    except OSError as e:
      logging.warning('%s: not renewed (%s)', path, e)


def _read(path: epath.Path) -> dict | None:
  try:
    value = json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except ValueError:
    return {}  # half-written by a run that was killed
  return value if isinstance(value, dict) else {}


def _alive(path: epath.Path, other: dict, beat: float) -> bool:
  here = _here()
  if other.get('machine') == here['machine']:
    born = _born(other.get('pid', 0))
    return born is not None and born == other.get('born')
  before = other
  until = time.monotonic() + 3 * beat
  logging.warning('%s: of another machine; waiting for a renewal', path)
  while time.monotonic() < until:
    time.sleep(beat / 4)
    now = _read(path)
    if now is None:
      return False
    if now != before:
      return True
  return False


def _here() -> dict:
  """Identity of this process.

  It differs from the identity of processes in other containers and of later
  processes with the same id.
  """
  machine = [socket.gethostname()]
  with contextlib.suppress(OSError):
    machine.append(
      pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    )
    machine.append(os.readlink('/proc/self/ns/pid'))
  return {
    'host': machine[0],
    'machine': ' '.join(machine),
    'pid': os.getpid(),
    'born': _born(os.getpid()),
  }


def _born(pid: int) -> str | None:
  """Start time of a process of this machine; None if there is none."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass  # it is another user's
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return ''  # no /proc here
  # The name, in brackets, may hold blanks; field 22 counts from the front.
  fields = stat.rpartition(')')[2].split()
  return None if fields[0] in 'ZX' else fields[19]
