"""What the launchers share: flags, the command of a worker, vendors' tools."""

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence

from absl import app, flags

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
class Chip:
  """How slices of a generation are sold.

  Attributes:
    gke: the accelerator's label on GKE's nodes.
    sold: names that a slice's type may begin with.
    cores: what the number in the type counts, per chip.
    per_host: chips of one machine in a slice of several.
    runtime: image of TPU VMs; '' where they are to be had by GKE alone.
    grids: sides in chips by number of chips.
  """

  gke: str
  sold: tuple[str, ...]
  cores: int
  per_host: int
  runtime: str
  grids: dict[int, str]


_SQUARES = {
  n * m: f'{n}x{m}'
  for n, m in ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
}
_CUBES = {
  4: '2x2x1',
  8: '2x2x2',
  16: '2x2x4',
  32: '2x4x4',
  64: '4x4x4',
  128: '4x4x8',
  256: '4x8x8',
  512: '8x8x8',
  1024: '8x8x16',
}
CHIPS = (
  Chip(
    'tpu-v5-lite-podslice',
    ('v5litepod', 'v5e'),
    1,
    4,
    'v2-alpha-tpuv5-lite',
    _SQUARES,
  ),
  Chip('tpu-v5p-slice', ('v5p',), 2, 4, 'v2-alpha-tpuv5', _CUBES),
  Chip('tpu-v6e-slice', ('v6e',), 1, 4, 'v2-alpha-tpuv6e', _SQUARES),
  Chip('tpu7x', ('tpu7x',), 2, 4, '', _CUBES),
)


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice by its type: generation and number of chips."""

  chip: Chip
  chips: int

  @property
  def grid(self) -> str:
    """Sides in chips, as GKE's nodes are labelled."""
    return self.chip.grids[self.chips]

  @property
  def hosts(self) -> int:
    """Machines."""
    return max(self.chips // self.chip.per_host, 1)

  @property
  def accelerator(self) -> str:
    """The type as gcloud takes it."""
    return f'{self.chip.sold[0]}-{self.chips * self.chip.cores}'


def parse(name: str) -> Slice:
  """A slice of this type.

  Raises:
    app.UsageError: there is none.
  """
  sold, _, number = name.rpartition('-')
  for chip in CHIPS:
    if sold in chip.sold:
      counts = [n * chip.cores for n in chip.grids]
      if number.isdigit() and int(number) in counts:
        return Slice(chip, int(number) // chip.cores)
      raise app.UsageError(
        f'--type={name}: expected {sold}- and one of {counts}'
      )
  known = sorted(n for chip in CHIPS for n in chip.sold)
  raise app.UsageError(
    f'--type={name}: expected one of {known} with a number, such as v5p-256'
  )


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
    'spacetime.train',
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
