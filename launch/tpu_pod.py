"""Trains on TPU VMs: slices by queued resources, one command on every worker.

  python -m launch.tpu_pod --project=P --zone=us-east5-a --type=v5p-256 \\
    --spot --name=wan --workdir=gs://BUCKET/wan \\
    --config=experiments/wan_t2v_14b.py -- --config.mesh.fsdp=64

The launcher requests the queued resource if it does not exist, copies this
checkout to every worker, starts the same command on each and follows the log of
worker 0 until the run ends. Preempted slices are requested again, and the run
continues from its work directory. --dry_run prints every command; --delete
deletes the resources. The launcher itself can be stopped and started again.
"""

import pathlib
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time

from absl import flags

from launch import pods
from spacetime.cli import common, help_pages

_RUNTIME = flags.DEFINE_string(
  'runtime_version', None, "Image of the VMs. Default: the generation's own."
)
_POLL = flags.DEFINE_float(
  'poll', 30.0, 'Seconds between requests for the state of the queue.'
)
help_pages.group('slice', 'runtime_version')
help_pages.group('control', 'poll')
ROOT = pathlib.Path(__file__).parents[1]
QUEUE = ('gcloud', 'compute', 'tpus', 'queued-resources')
NODE = ('gcloud', 'compute', 'tpus', 'tpu-vm')
# A process that an earlier start left running would hold the chips.
_UNPACK = (
  'if [ -e ~/run.pid ]; then kill -9 -- -$(cat ~/run.pid); rm ~/run.pid; fi; '
  'mkdir -p spacetime && tar -xzf spacetime.tar.gz -C spacetime && '
  'cd spacetime && python3 -m venv ~/venv && '
  "~/venv/bin/pip install -q '.[tpu,gcs]'"
)
GONE = ('FAILED', 'SUSPENDED', 'SUSPENDING')


def main(overrides: list[str]) -> int:
  """Launches and follows a run, or deletes it; returns the run's exit code."""
  if pods.DELETE.value:
    pods.check((pods.PROJECT, pods.ZONE, pods.NAME))
    return delete()
  pods.check((*(pods.PROJECT, pods.ZONE, pods.TYPE), pods.WORKDIR, pods.CONFIG))
  slice_type = pods.parse(pods.TYPE.value)
  if not slice_type.machine.runtime:
    raise ValueError(
      f'--type={pods.TYPE.value}: sold on GKE alone; use python -m '
      'launch.gke.jobset'
    )
  command = pods.train_command(overrides)
  for _ in range(pods.RESTARTS.value + 1):
    acquire(slice_type)
    code = ship() or train(command)
    if code in (0, pods.BAD_INPUT):
      return code
    print(f'ended with code {code}: starting again', file=sys.stderr)
  print(
    f'gave up after {pods.RESTARTS.value} restarts; raise --max_restarts',
    file=sys.stderr,
  )
  return pods.RESTART


def location() -> list[str]:
  """Project and zone as arguments of gcloud."""
  return [f'--project={pods.PROJECT.value}', f'--zone={pods.ZONE.value}']


def nodes() -> list[str]:
  """Names of the slices' nodes."""
  name, count = pods.NAME.value, pods.SLICES.value
  return [name] if count == 1 else [f'{name}-{i}' for i in range(count)]


def state() -> str:
  """State of the queued resource, such as 'ACTIVE'; '' if there is none."""
  code, output = pods.call(
    [*QUEUE, 'describe', pods.NAME.value, *location()]
    + ['--format=value(state.state)'],
    answer='ACTIVE',
  )
  return output if code == 0 else ''


def acquire(slice_type: pods.Slice) -> None:
  """Creates the slices if needed and returns when they are active."""
  current = '' if pods.DRY_RUN.value else state()
  if current in GONE:
    delete()
    current = ''
  if not current:
    create(slice_type)
  while (current := state()) != 'ACTIVE':
    if current in GONE:
      print(
        f'{pods.NAME.value} is {current}: requesting it again', file=sys.stderr
      )
      delete()
      create(slice_type)
    time.sleep(_POLL.value)


def create(slice_type: pods.Slice) -> None:
  """Requests the slices; exits where gcloud refuses them."""
  name = pods.NAME.value
  several = pods.SLICES.value > 1
  code, _ = pods.call(
    [
      *(*QUEUE, 'create', name, *location()),
      f'--accelerator-type={slice_type.accelerator}',
      f'--runtime-version={_RUNTIME.value or slice_type.machine.runtime}',
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
  """Deletes the slices; returns an exit code."""
  return pods.call(
    [*QUEUE, 'delete', pods.NAME.value, *location(), '--force', '--quiet']
  )[0]


def ssh(node: str, worker: str, command: str, **kwargs) -> tuple[int, str]:
  """Runs a command on one worker of a slice, or on all."""
  return pods.call(
    [*NODE, 'ssh', node, *location(), f'--worker={worker}']
    + [f'--command={command}'],
    **kwargs,
  )


def ship() -> int:
  """Copies this checkout to every worker and installs it; an exit code."""
  with tempfile.TemporaryDirectory() as folder:
    archive = pathlib.Path(folder) / 'spacetime.tar.gz'
    if not pods.DRY_RUN.value:
      pack(archive)
    for node in nodes():
      code, _ = pods.call(
        [*NODE, 'scp', str(archive), f'{node}:spacetime.tar.gz']
        + [*location(), '--worker=all']
      )
      code = code or ssh(node, 'all', _UNPACK)[0]
      if code:
        return pods.RESTART  # a slice may be taken away at this moment too
  return 0


def pack(archive: pathlib.Path) -> None:
  """Packs the files that git tracks or would track, with uncommitted edits."""
  listing = subprocess.run(
    ['git', 'ls-files', '-co', '--exclude-standard', '-z'],
    cwd=ROOT,
    capture_output=True,
    check=True,
    text=True,
  )
  with tarfile.open(archive, 'w:gz', compresslevel=1) as file:
    for name in filter(None, listing.stdout.split('\0')):
      if (ROOT / name).is_file():
        file.add(ROOT / name, arcname=name)


def train(command: list[str]) -> int:
  """Starts the command on all workers, follows a log; returns an exit code.

  The workers outlive the connection: if it breaks, the log survives, and the
  exit code is read from a file once the run has ended.
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
  code, output = ssh(nodes()[0], '0', 'cat ~/run.exit', answer='0')
  return int(output) if code == 0 and output.isdigit() else pods.RESTART


if __name__ == '__main__':
  common.run(main, docstring=__doc__, operands=True)
