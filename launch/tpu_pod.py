"""Trains on TPU VMs: slices by queued resources, one command on every worker.

  python -m launch.tpu_pod --project=P --zone=us-east5-a --type=v5p-256 \\
    --spot --name=wan --workdir=gs://BUCKET/wan \\
    --config=pods:14b-720p-v5p-256 -- --checkpoint=gs://BUCKET/WAN \\
    --config.data.dir=gs://BUCKET/CACHE

Config, mesh and memory are checked first. The launcher then requests the
queued resource if it does not exist, copies this checkout (what git tracks) to
every worker, installs it with a Python of its own, starts the same command on
each and follows the log of worker 0 until the run ends. Folders of this
machine, such as --config.data.dir=cache, are copied to gs://BUCKET/wan-inputs,
which the workers read. Preempted slices are requested again, and the run
continues from its work directory. --dry_run checks everything and prints every
command; --delete deletes the resources. The launcher itself can be stopped and
started again.
"""

import pathlib
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time

from absl import flags

from launch import pods, preflight
from spacetime.cli import common, help_pages

_RUNTIME = flags.DEFINE_string(
  'runtime_version', None, "Image of the VMs. Default: the generation's own."
)
_POLL = flags.DEFINE_float(
  'poll', 30.0, 'Seconds between requests for the state of the queue.'
)
_SHIP = flags.DEFINE_list(
  'ship',
  [],
  'Files and folders to ship beside those that git tracks. Example: '
  '--ship=experiments/mine.py.',
)
help_pages.group('run', 'ship')
help_pages.group('slice', 'runtime_version')
help_pages.group('control', 'poll')
ROOT = pathlib.Path(__file__).parents[1]
QUEUE = ('gcloud', 'compute', 'tpus', 'queued-resources')
NODE = ('gcloud', 'compute', 'tpus', 'tpu-vm')
# A process that an earlier start left running would hold the chips.
_UNPACK = (
  'if [ -e ~/run.pid ]; then kill -9 -- -$(cat ~/run.pid); rm ~/run.pid; fi; '
  'mkdir -p spacetime && tar -xzf spacetime.tar.gz -C spacetime && '
  'cd spacetime && bash launch/install_worker.sh'
)
GONE = ('FAILED', 'SUSPENDED', 'SUSPENDING')
# Failures one after the other, of slices that are still there, after which the
# launcher gives up: of the installation, and of a run within its first minutes.
TRIES = 3
EARLY = 600.0


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
  launch = preflight.check(slice_type, overrides)
  check_shipped(launch.config)
  launch.copy_inputs()
  failed = crashed = 0
  for _ in range(pods.RESTARTS.value + 1):
    acquire(slice_type)
    if not ship():
      # A slice may be taken away at this moment too.
      failed = failed + 1 if is_alive() else 0
      if failed == TRIES:
        return give_up('the installation', failed, pods.BAD_INPUT)
      print('the installation failed: starting again', file=sys.stderr)
      time.sleep(_POLL.value)
      continue
    failed, began = 0, time.monotonic()
    code = train(launch.command())
    if code in (0, pods.BAD_INPUT):
      return code
    early = code != pods.RESTART and time.monotonic() - began < EARLY
    crashed = crashed + 1 if early else 0
    if crashed == TRIES:
      return give_up(f'the run (exit code {code})', crashed, code)
    print(f'ended with code {code}: starting again', file=sys.stderr)
  print(
    f'gave up after {pods.RESTARTS.value} restarts; raise --max_restarts',
    file=sys.stderr,
  )
  return pods.RESTART


def give_up(what: str, times: int, code: int) -> int:
  """Reports what fails again and again on slices that are there."""
  print(
    f'error: {what} failed {times} times, on slices that are there; its last '
    'lines are above, and the slices are kept (--delete deletes them)',
    file=sys.stderr,
  )
  return code


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


def is_alive() -> bool:
  """Whether every node of the slices is there: not preempted, not deleted."""
  for node in nodes():
    code, output = pods.call(
      [*NODE, 'describe', node, *location(), '--format=value(state)'],
      answer='READY',
    )
    if code or output != 'READY':
      return False
  return True


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


def ship() -> bool:
  """Copies this checkout to every worker and installs it; whether it did."""
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
        return False
  return True


def pack(archive: pathlib.Path) -> None:
  """Packs the files that are shipped, with uncommitted edits."""
  with tarfile.open(archive, 'w:gz', compresslevel=1) as file:
    for name in shipped():
      file.add(ROOT / name, arcname=name)


def shipped() -> list[str]:
  """Files that git tracks, and those of --ship, relative to the checkout.

  Raises:
    ValueError: no checkout, or a path of --ship that is not in it.
  """
  names = set(_git_files('--cached'))
  for value in _SHIP.value:
    path = (ROOT / value).resolve()
    if not path.exists() or not path.is_relative_to(ROOT.resolve()):
      raise ValueError(f'--ship={value}: expected a path in {ROOT}')
    inside = [path] if path.is_file() else path.rglob('*')
    names |= {str(p.relative_to(ROOT.resolve())) for p in inside}
  return sorted(name for name in names if (ROOT / name).is_file())


def check_shipped(config: str) -> None:
  """Checks that the experiment is shipped; names Python files that are not.

  Raises:
    ValueError: the experiment's file is not shipped.
  """
  names, file = shipped(), config.partition(':')[0]
  if file not in names:
    raise ValueError(
      f'--config={config}: git does not track {file}, so that workers would '
      f'not have it; git add it, or --ship={file}'
    )
  left = [
    name
    for name in _git_files('--others', '--exclude-standard')
    if name.endswith('.py') and name not in names
  ]
  if left:
    print(f'not shipped (untracked): {", ".join(left[:5])}', file=sys.stderr)


def _git_files(*options: str) -> list[str]:
  listing = subprocess.run(
    ['git', 'ls-files', *options, '-z'],
    cwd=ROOT,
    capture_output=True,
    check=False,
    text=True,
  )
  if listing.returncode:
    raise ValueError(f'{ROOT}: expected a git checkout, which is shipped')
  return [name for name in listing.stdout.split('\0') if name]


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
    if ssh(node, 'all', run)[0]:
      return pods.RESTART
  follow = (
    'tail -n +1 -F ~/run.log & until [ -e ~/run.exit ]; do sleep 5; done; '
    'sleep 1; kill %1'
  )
  ssh(nodes()[0], '0', follow)
  code, output = ssh(nodes()[0], '0', 'cat ~/run.exit', answer='0')
  return int(output) if code == 0 and output.isdigit() else pods.RESTART


if __name__ == '__main__':
  common.run(main, docstring=__doc__, operands=True)
