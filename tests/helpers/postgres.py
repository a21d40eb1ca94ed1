"""A PostgreSQL server of the machine's own, for one test session."""

import contextlib
import os
import pathlib
import pwd
import shutil
import subprocess
import tempfile


def binaries() -> pathlib.Path | None:
  """Folder of initdb and postgres, or None."""
  if shutil.which('initdb'):
    return pathlib.Path(shutil.which('initdb')).resolve().parent
  folders = sorted(pathlib.Path('/usr/lib/postgresql').glob('*/bin'))
  return folders[-1] if folders else None


@contextlib.contextmanager
def running():
  """Yields the URL of an empty database; PostgreSQL does not run as root."""
  folder = tempfile.mkdtemp(prefix='spacetime-pg-')
  options = {}
  user = pwd.getpwuid(os.getuid()).pw_name
  if os.getuid() == 0:
    user = 'nobody'
    options = {'user': user, 'group': pwd.getpwnam(user).pw_gid}
    shutil.chown(folder, user)
  data, bin_folder = f'{folder}/data', binaries()
  quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
  subprocess.run(
    [
      f'{bin_folder}/initdb',
      '-D',
      data,
      '-A',
      'trust',
      '-N',
      '-U',
      'spacetime',
    ],
    check=True,
    cwd=folder,
    **quiet,
    **options,
  )
  server = subprocess.Popen(
    [
      *(f'{bin_folder}/postgres', '-D', data, '-k', folder),
      *('-c', 'listen_addresses=', '-c', 'fsync=off'),
    ],
    cwd=folder,
    **quiet,
    **options,
  )
  try:
    url = f'postgresql://spacetime@/postgres?host={folder}'
    _wait(url)
    yield url
  finally:
    server.terminate()
    server.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str) -> None:
  import time

  import psycopg

  for _ in range(200):
    try:
      psycopg.connect(url).close()
      return
    except psycopg.OperationalError:
      time.sleep(0.05)
  raise TimeoutError(url)
