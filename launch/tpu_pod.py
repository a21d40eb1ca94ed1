"""Trains on TPU VMs: slices by queued resources, one command on every worker.

  python -m launch.tpu_pod --project=P --zone=us-east5-a --type=v5p-256 \\
    --spot --name=wan --workdir=gs://BUCKET/wan \\
    --config=experiments/wan_t2v_14b.py -- --config.mesh.fsdp=64

makes the resource if there is none, ships this checkout, starts the same
command on every worker and shows what worker 0 says, until the run is done.
Preempted slices are asked for anew, and the run goes on from its work
directory. --dry_run prints every command; --delete gives all back. It can be
ended and started again itself.
"""

import pathlib
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time

from absl import app, flags

from launch import pods

_RUNTIME = flags.DEFINE_string(
  'runtime_version', None, "Image of the VMs; default: the chip's own."
)
_POLL = flags.DEFINE_float('poll', 30.0, 'Seconds between looks at the queue.')
ROOT = pathlib.Path(__file__).parents[1]
QUEUE = ('gcloud', 'compute', 'tpus', 'queued-resources')
NODE = ('gcloud', 'compute', 'tpus', 'tpu-vm')
# What an earlier start left running would hold the chips.
_UNPACK = (
  'if [ -e ~/run.pid ]; then kill -9 -- -$(cat ~/run.pid); rm ~/run.pid; fi; '
  'mkdir -p spacetime && tar -xzf spacetime.tar.gz -C spacetime && '
  'cd spacetime && python3 -m venv ~/venv && '
  "~/venv/bin/pip install -q '.[tpu,gcs]'"
)
GONE = ('FAILED', 'SUSPENDED', 'SUSPENDING')


def main(argv: list[str]) -> int:
  """Launches, watches, deletes; the run's exit code."""
  if pods.DELETE.value:
    pods.check((pods.PROJECT, pods.ZONE, pods.NAME))
    return delete()
  pods.check((*(pods.PROJECT, pods.ZONE, pods.TYPE), pods.WORKDIR, pods.CONFIG))
  wanted = pods.parse(pods.TYPE.value)
  if not wanted.machine.runtime:
    raise app.UsageError(
      f'--type={pods.TYPE.value}: to be had on GKE alone; use python -m '
      'launch.gke.jobset'
    )
  command = pods.train_command(argv[1:])
  for _ in range(pods.RESTARTS.value + 1):
    acquire(wanted)
    code = ship() or train(command)
    if code in (0, pods.BAD_INPUT):
      return code
    print(f'ended with code {code}: starting again', file=sys.stderr)
  print(
    f'given up after {pods.RESTARTS.value} restarts; --max_restarts=N tries on',
    file=sys.stderr,
  )
  return pods.RESTART


def place() -> list[str]:
  """Where all of it is."""
  return [f'--project={pods.PROJECT.value}', f'--zone={pods.ZONE.value}']


def nodes() -> list[str]:
  """Names of the slices."""
  name, count = pods.NAME.value, pods.SLICES.value
  return [name] if count == 1 else [f'{name}-{i}' for i in range(count)]


def state() -> str:
  """Of the queued resource: 'ACTIVE', ...; '' if there is none."""
  code, told = pods.call(
    [*QUEUE, 'describe', pods.NAME.value, *place()]
    + ['--format=value(state.state)'],
    answer='ACTIVE',
  )
  return told if code == 0 else ''


def acquire(wanted: pods.Slice) -> None:
  """Returns when the slices are there."""
  now = '' if pods.DRY_RUN.value else state()
  if now in GONE:
    delete()
    now = ''
  if not now:
    create(wanted)
  while (now := state()) != 'ACTIVE':
    if now in GONE:
      print(f'{pods.NAME.value} is {now}: asking anew', file=sys.stderr)
      delete()
      create(wanted)
    time.sleep(_POLL.value)


def create(wanted: pods.Slice) -> None:
  """Asks for the slices; ends the program where they are refused."""
  name = pods.NAME.value
  several = pods.SLICES.value > 1
  code, _ = pods.call(
    [
      *(*QUEUE, 'create', name, *place()),
      f'--accelerator-type={wanted.accelerator}',
      f'--runtime-version={_RUNTIME.value or wanted.machine.runtime}',
      *(
        [f'--node-count={pods.SLICES.value}', f'--node-prefix={name}']
        if several
        else [f'--node-id={name}']
      ),
      *(['--spot'] if pods.SPOT.value else []),
    ]
  )
  if code:
    print('error: gcloud refused the request', file=sys.stderr)
    sys.exit(pods.BAD_INPUT)


def delete() -> int:
  """Gives the slices back."""
  return pods.call(
    [*QUEUE, 'delete', pods.NAME.value, *place(), '--force', '--quiet']
  )[0]


def ssh(node: str, worker: str, command: str, **kwargs) -> tuple[int, str]:
  """A command on one worker of a slice, or on all."""
  return pods.call(
    [*NODE, 'ssh', node, *place(), f'--worker={worker}']
    + [f'--command={command}'],
    **kwargs,
  )


def ship() -> int:
  """This checkout on every worker, installed; an exit code."""
  with tempfile.TemporaryDirectory() as folder:
    archive = pathlib.Path(folder) / 'spacetime.tar.gz'
    if not pods.DRY_RUN.value:
      pack(archive)
    for node in nodes():
      code, _ = pods.call(
        [*NODE, 'scp', str(archive), f'{node}:spacetime.tar.gz']
        + [*place(), '--worker=all']
      )
      code = code or ssh(node, 'all', _UNPACK)[0]
      if code:
        return pods.RESTART  # a slice may be taken away at this moment too
  return 0


def pack(archive: pathlib.Path) -> None:
  """Files that git knows or would know, uncommitted edits included."""
  listed = subprocess.run(
    ['git', 'ls-files', '-co', '--exclude-standard', '-z'],
    cwd=ROOT,
    capture_output=True,
    check=True,
    text=True,
  )
  with tarfile.open(archive, 'w:gz') as file:
    for name in filter(None, listed.stdout.split('\0')):
      if (ROOT / name).is_file():
        file.add(ROOT / name, arcname=name)


def train(command: list[str]) -> int:
  """Starts it everywhere, shows worker 0's log; its exit code.

  The workers outlive the connection: if that breaks, the log does not, and the
  exit code is read from a file when it is there.
  """
  script = (
    f'echo $$ > ~/run.pid; PATH=$HOME/venv/bin:$PATH {shlex.join(command)}; '
    'echo $? > ~/run.exit'
  )
  run = (
    'cd ~/spacetime && rm -f ~/run.exit && (setsid nohup bash -c '
    f'{shlex.quote(script)} > ~/run.log 2>&1 < /dev/null &)'
  )
  for node in nodes():
    code, _ = ssh(node, 'all', run)
    if code:
      return code
  follow = (
    'tail -n +1 -F ~/run.log & until [ -e ~/run.exit ]; do sleep 5; done; '
    'sleep 1; kill %1'
  )
  ssh(nodes()[0], '0', follow)
  code, told = ssh(nodes()[0], '0', 'cat ~/run.exit', answer='0')
  return int(told) if code == 0 and told.isdigit() else pods.RESTART


if __name__ == '__main__':
  app.run(main)
