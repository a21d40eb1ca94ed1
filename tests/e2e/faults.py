"""Faults of a run, many times each: saved work survives, and it continues.

  python -m tests.e2e.faults --times=10

SIGTERM; SIGKILL within a save; a full disk (a small file system where one can
be mounted, else a limit on the size of files). Each start continues from the
checkpoint of the one before. In the end the losses must be those of an
undisturbed run, bit for bit.
"""

import argparse
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time

from spacetime import checkpoint
from spacetime.checkpoint import paths
from spacetime.cli import (
  common,
  train,  # imported once, then forked
)
from spacetime.training import metrics

CACHE = pathlib.Path(__file__).parents[2] / '.cache/jax_tests'


def start(folder: pathlib.Path, workdir, *, steps: int, limit: int = 0) -> int:
  """Begins a run in a process of its own; its number."""
  pid = os.fork()
  if pid:
    return pid
  code = 70
  try:
    log = os.open(folder / 'log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if limit:
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = [
      'train',
      '--config=experiments/digits_pixels.py:tiny',
      f'--workdir={workdir}',
      f'--config.data.dir={folder / "data"}',
      f'--config.train.steps={steps}',
      '--config.train.checkpoint_every=2',
      '--config.train.log_every=1',
      '--config.train.evaluate_every=0',
      '--config.train.sheet_every=0',
      '--config.train.pca_init_clips=0',
      '--config.optimizer.name=adamw',
      '--config.optimizer.decay=0.0',
      '--config.optimizer.warmup=1',
      '--preemption_exit_code=75',
      f'--compilation_cache={CACHE}',
    ]
    common.run(train.main)
  except SystemExit as e:
    code = e.code or 0
  finally:
    os._exit(code)


def complete_steps(workdir: pathlib.Path) -> list[int]:
  """Steps with a complete checkpoint."""
  folder = paths.absolute(workdir) / checkpoint.STEPS
  if not folder.exists():
    return []
  return sorted(int(p.name) for p in folder.iterdir() if paths.is_complete(p))


def until(holds, pid: int, *, seconds: float = 300) -> None:
  """Waits for something, while the run lives."""
  end = time.monotonic() + seconds
  while not holds():
    done, status = os.waitpid(pid, os.WNOHANG)
    assert not done, f'the run has ended by itself: {status}'
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.001)


def code_of(pid: int) -> int:
  """Waits for the end; a signal as a negative number."""
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def terminated(folder, workdir, draw) -> None:
  """SIGTERM after some steps: all is saved, and the code says start again."""
  before = max(complete_steps(workdir), default=0)
  pid = start(folder, workdir, steps=100000)
  until(lambda: max(complete_steps(workdir), default=0) > before, pid)
  time.sleep(draw.random() * 0.1)
  os.kill(pid, signal.SIGTERM)
  assert code_of(pid) == 75
  last = metrics.read_metrics(workdir)[-1]['step']
  assert complete_steps(workdir)[-1] == last, 'the last step was not saved'


def killed(folder, workdir, draw) -> None:
  """SIGKILL while a checkpoint is half-written."""
  before = max(complete_steps(workdir), default=0)
  pid = start(folder, workdir, steps=100000)
  until(lambda: max(complete_steps(workdir), default=0) > before, pid)
  steps = workdir / checkpoint.STEPS
  half = lambda: any(not p.name.isdigit() for p in steps.iterdir())  # noqa: E731
  until(half, pid)
  time.sleep(draw.random() * 0.02)
  held = max(complete_steps(workdir))
  os.kill(pid, signal.SIGKILL)
  assert code_of(pid) == -signal.SIGKILL
  assert max(complete_steps(workdir)) >= held > before


def filled(folder, workdir, draw) -> None:
  """The disk is full: the run ends and says so; what it had stays."""
  before = complete_steps(workdir)
  ballast = workdir / 'ballast'
  mounted = os.path.ismount(workdir)
  pid = start(folder, workdir, steps=100000, limit=0 if mounted else 100_000)
  if mounted:
    until(
      lambda: max(complete_steps(workdir), default=0) > max(before, default=0),
      pid,
    )
    time.sleep(draw.random() * 0.1)
    with ballast.open('wb', buffering=0) as file:
      try:
        while file.write(b'0' * 65536):
          pass
      except OSError:
        pass
  code = code_of(pid)
  ballast.unlink(missing_ok=True)
  assert code == 75, f'exit code {code}'
  assert 'started again, the run resumes' in (folder / 'log').read_text()
  assert max(complete_steps(workdir), default=0) >= max(before, default=0)


FAULTS = {'SIGTERM': terminated, 'SIGKILL': killed, 'full disk': filled}


def main() -> None:
  """Each fault so many times, then the comparison."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--times', type=int, default=10)
  times = parser.parse_args().times
  folder = pathlib.Path(tempfile.mkdtemp(prefix='spacetime_faults_'))
  draw = random.Random(0)
  for name, fault in FAULTS.items():
    workdir = folder / name.replace(' ', '_')
    workdir.mkdir()
    disk = ['-t', 'tmpfs', '-o', 'size=48m', 'tmpfs', str(workdir)]
    mounted = (
      name == 'full disk'
      and not subprocess.run(
        ['mount', *disk], stderr=subprocess.DEVNULL
      ).returncode
    )
    began = time.monotonic()
    try:
      for _ in range(times):
        fault(folder, workdir, draw)
      last = max(complete_steps(workdir), default=0)
      assert code_of(start(folder, workdir, steps=last + 2)) == 0
      calm = folder / f'calm_{name.replace(" ", "_")}'
      assert code_of(start(folder, calm, steps=last + 2)) == 0
      losses, expected = (
        {x['step']: x['loss'] for x in metrics.read_metrics(w) if 'loss' in x}
        for w in (workdir, calm)
      )
      assert losses == expected and len(expected) == last + 2, 'other losses'
    finally:
      if mounted:
        subprocess.run(['umount', str(workdir)], check=True)
    print(
      f'{name}: {times} times, {last + 2} steps, nothing lost, losses bit for '
      f'bit those of an undisturbed run ({time.monotonic() - began:.0f} s'
      f'{", on a full file system" if mounted else ""})',
      flush=True,
    )


if __name__ == '__main__':
  main()
