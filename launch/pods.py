"""Shared by the launchers: flags, slices, workers' commands, vendors' tools."""

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence

from absl import flags

from spacetime import SettingError
from spacetime.cli import help_pages
from spacetime.sharding import topology

NAME = flags.DEFINE_string(
  'name', 'spacetime', 'Name of the run and of its cloud resources.'
)
CONFIG = flags.DEFINE_string(
  'config',
  None,
  'Experiment to train; overrides of its keys and --checkpoint follow after '
  '--. Example: --config=pods:14b-720p-v5p-256.',
)
WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  "The run's work directory. Example: --workdir=gs://BUCKET/RUN.",
)
RESTARTS = flags.DEFINE_integer(
  'max_restarts', 100, 'Number of times that the run is started again.'
)
PROJECT = flags.DEFINE_string('project', None, 'Google Cloud project.')
ZONE = flags.DEFINE_string(
  'zone', None, 'Google Cloud zone. Example: --zone=us-east5-a.'
)
TYPE = flags.DEFINE_string(
  'type', None, 'Slice type as it is sold. Example: --type=v5p-256.'
)
SLICES = flags.DEFINE_integer('slices', 1, 'Number of slices.')
SPOT = flags.DEFINE_bool(
  'spot', False, 'Use spot capacity: cheaper, and preempted at any time.'
)
DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Check everything, print every command and run none.'
)
CHECK_MEMORY = flags.DEFINE_bool(
  'check_memory',
  True,
  'Compile the training step for the slices first, to see whether it fits; '
  'takes minutes.',
)
DELETE = flags.DEFINE_bool('delete', False, 'Delete the cloud resources.')
help_pages.group('run', 'name', 'config', 'workdir', 'max_restarts')
help_pages.group('slice', 'project', 'zone', 'type', 'slices', 'spot')
help_pages.group('control', 'dry_run', 'check_memory', 'delete')

RESTART = 75  # exit code of a run that should be started again
BAD_INPUT = 2  # exit code of a run that can never succeed


@dataclasses.dataclass(frozen=True)
class Machine:
  """Cloud names of a TPU generation.

  Attributes:
    gke: the accelerator's label on GKE's nodes.
    gcloud: prefix of a slice's accelerator type.
    runtime: image of TPU VMs; '' if the generation is sold on GKE alone.
  """

  gke: str
  gcloud: str
  runtime: str


# By the names of spacetime/sharding/chips.py, which has the slices.
MACHINES = {
  'v5e': Machine('tpu-v5-lite-podslice', 'v5litepod', 'v2-alpha-tpuv5-lite'),
  'v5p': Machine('tpu-v5p-slice', 'v5p', 'v2-alpha-tpuv5'),
  'v6e': Machine('tpu-v6e-slice', 'v6e', 'v2-alpha-tpuv6e'),
  'tpu7x': Machine('tpu7x', 'tpu7x', ''),
}
PER_HOST = 4  # chips per machine, in slices of several machines


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice and its names in the cloud."""

  topology: topology.Topology

  @property
  def machine(self) -> Machine:
    """Cloud names of its generation."""
    return MACHINES[self.topology.chip.name]

  @property
  def grid(self) -> str:
    """Sides in chips, in the form of GKE's node labels."""
    return 'x'.join(map(str, self.topology.grid))

  @property
  def hosts(self) -> int:
    """Number of machines."""
    return max(self.topology.chips // PER_HOST, 1)

  @property
  def accelerator(self) -> str:
    """Accelerator type in gcloud's spelling."""
    count = self.topology.chips * self.topology.chip.counted
    return f'{self.machine.gcloud}-{count}'


def parse(name: str) -> Slice:
  """Returns the slice of a type such as `v5p-256`.

  Raises:
    ValueError: there is no such type.
  """
  try:
    if ':' in name:
      raise ValueError('expected a name as it is sold, such as v5p-256')
    return Slice(topology.parse(name))
  except SettingError as e:
    raise SettingError('type', name, e.expected, hint=e.hint) from e
  except ValueError as e:
    reason = str(e).removeprefix(f'--topology={name}: ').partition('. ')[0]
    raise ValueError(f'--type={name}: {reason}') from e


def check(required: Sequence[flags.FlagHolder]) -> None:
  """Checks the flags of a launch.

  Raises:
    ValueError: a flag is missing or bad.
  """
  missing = [f'--{flag.name}' for flag in required if not flag.value]
  if missing:
    raise ValueError(f'expected {", ".join(missing)} too; see --help')
  if WORKDIR.value and not WORKDIR.value.startswith('gs://'):
    raise SettingError(
      'workdir',
      WORKDIR.value,
      'gs://BUCKET/RUN, which all workers and the next start can reach',
    )
  for flag, least in ((SLICES, 1), (RESTARTS, 0)):
    if flag.value < least:
      raise SettingError(flag.name, flag.value, f'{least} or more')


def train_command(config: str, overrides: Sequence[str]) -> list[str]:
  """Command of every worker."""
  return [
    'python',
    '-m',
    'spacetime',
    'train',
    '--coordinator=auto',
    f'--preemption_exit_code={RESTART}',
    f'--config={config}',
    f'--workdir={WORKDIR.value}',
    *overrides,
  ]


def call(
  command: Sequence[str], *, answer: str = '', stdin: str | None = None
) -> tuple[int, str]:
  """Runs a vendor's tool, or prints it in a dry run: (exit code, output).

  Args:
    command: the tool and its arguments.
    answer: output that a dry run assumes; '' lets a real run print its output.
    stdin: text for the tool to read.
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
  """JSON text; kubectl reads it as it reads YAML."""
  return json.dumps(value, indent=2)
