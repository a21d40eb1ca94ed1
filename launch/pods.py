"""What the launchers share: flags, the command of a worker, vendors' tools."""

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence

from absl import app, flags

from spacetime.sharding import topology

NAME = flags.DEFINE_string(
  'name', 'spacetime', 'Of the run; the resources are called after it.'
)
PROJECT = flags.DEFINE_string('project', None, 'Of Google Cloud.')
ZONE = flags.DEFINE_string('zone', None, 'Such as us-east5-a.')
TYPE = flags.DEFINE_string(
  'type', None, 'Slice as it is sold: v5p-256, v6e-256, v5litepod-16.'
)
SLICES = flags.DEFINE_integer('slices', 1, 'How many slices.')
SPOT = flags.DEFINE_bool('spot', False, 'Cheaper, and taken away at any time.')
WORKDIR = flags.DEFINE_string('workdir', None, 'gs://BUCKET/RUN.')
CONFIG = flags.DEFINE_string(
  'config', None, 'An experiment; its overrides come after --.'
)
RESTARTS = flags.DEFINE_integer(
  'max_restarts', 100, 'How often the run is started again before giving up.'
)
DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Prints every command and runs none.'
)
DELETE = flags.DEFINE_bool('delete', False, 'Gives the resources back.')

RESTART = 75  # exit code of a run that wants to be started again
BAD_INPUT = 2  # of one that never will go


@dataclasses.dataclass(frozen=True)
class Machine:
  """Where the chips of a generation stand.

  Attributes:
    gke: the accelerator's label on GKE's nodes.
    gcloud: what a slice's accelerator type begins with.
    runtime: image of TPU VMs; '' where they are to be had by GKE alone.
  """

  gke: str
  gcloud: str
  runtime: str


# By name in spacetime/chips.py, which has the slices.
MACHINES = {
  'v5e': Machine('tpu-v5-lite-podslice', 'v5litepod', 'v2-alpha-tpuv5-lite'),
  'v5p': Machine('tpu-v5p-slice', 'v5p', 'v2-alpha-tpuv5'),
  'v6e': Machine('tpu-v6e-slice', 'v6e', 'v2-alpha-tpuv6e'),
  'tpu7x': Machine('tpu7x', 'tpu7x', ''),
}
PER_HOST = 4  # chips of a machine, in slices of several


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice by its type."""

  topology: topology.Topology

  @property
  def machine(self) -> Machine:
    """What it is made of."""
    return MACHINES[self.topology.chip.name]

  @property
  def grid(self) -> str:
    """Sides in chips, as GKE's nodes are labelled."""
    return 'x'.join(map(str, self.topology.grid))

  @property
  def hosts(self) -> int:
    """Machines."""
    return max(self.topology.chips // PER_HOST, 1)

  @property
  def accelerator(self) -> str:
    """The type as gcloud takes it."""
    count = self.topology.chips * self.topology.chip.counted
    return f'{self.machine.gcloud}-{count}'


def parse(name: str) -> Slice:
  """A slice of this type.

  Raises:
    app.UsageError: there is none.
  """
  try:
    if ':' in name:
      raise ValueError('expected a name as bought, such as v5p-256')
    return Slice(topology.parse(name))
  except ValueError as e:
    reason = str(e).removeprefix(f'--topology={name}: ').partition('. ')[0]
    raise app.UsageError(f'--type={name}: {reason}') from e


def check(needed: Sequence[flags.FlagHolder]) -> None:
  """Refuses what cannot be launched.

  Raises:
    app.UsageError: a flag is missing or bad.
  """
  missing = [f'--{flag.name}' for flag in needed if not flag.value]
  if missing:
    raise app.UsageError(f'expected {", ".join(missing)} too')
  if WORKDIR.value and not WORKDIR.value.startswith('gs://'):
    raise app.UsageError(
      f'--workdir={WORKDIR.value}: expected gs://BUCKET/RUN, which all workers '
      'and the next start can reach'
    )
  if SLICES.value < 1 or RESTARTS.value < 0:
    raise app.UsageError(
      f'--slices={SLICES.value}, --max_restarts={RESTARTS.value}: expected 1 '
      'or more, and 0 or more'
    )


def train_command(overrides: Sequence[str]) -> list[str]:
  """What every worker runs."""
  return [
    'python',
    '-m',
    'spacetime',
    'train',
    '--coordinator=auto',
    f'--preemption_exit_code={RESTART}',
    f'--config={CONFIG.value}',
    f'--workdir={WORKDIR.value}',
    *overrides,
  ]


def call(
  command: Sequence[str], *, answer: str = '', stdin: str | None = None
) -> tuple[int, str]:
  """Runs a vendor's tool, or tells what would be run: (exit code, output).

  Args:
    command: the tool and its arguments.
    answer: what a dry run takes for its output; '' lets a real one print.
    stdin: text that it reads.
  """
  print(f'$ {shlex.join(command)}', file=sys.stderr, flush=True)
  if DRY_RUN.value:
    return 0, answer
  try:
    ran = subprocess.run(
      command,
      input=stdin,
      stdout=subprocess.PIPE if answer else None,
      text=True,
      check=False,
    )
  except FileNotFoundError:
    print(f'error: {command[0]} is not installed', file=sys.stderr)
    sys.exit(BAD_INPUT)
  return ran.returncode, (ran.stdout or '').strip()


def pretty(value: dict) -> str:
  """As JSON, which kubectl reads as it reads YAML."""
  return json.dumps(value, indent=2)
