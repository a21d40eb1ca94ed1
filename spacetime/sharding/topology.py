"""TPU slices by the names under which they are sold.

Parsing names needs no JAX: launchers use it on machines without JAX. Devices of
a slice are descriptions from libtpu's compiler.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re

from spacetime import SettingError
from spacetime.sharding import chips


@dataclasses.dataclass(frozen=True)
class Topology:
  """One or several slices of a generation of TPU.

  Attributes:
    chip: the generation.
    grid: chips along each side of a slice's torus.
    slices: number of slices, joined by the data-centre network.
  """

  chip: chips.Chip
  grid: tuple[int, ...]
  slices: int = 1

  @property
  def raw(self) -> str:
    """The compiler's name of a slice, like 'v6e:16x16'."""
    return f'{self.chip.name}:{"x".join(map(str, self.grid))}'

  @property
  def chips(self) -> int:
    """Chips of all slices."""
    return math.prod(self.grid) * self.slices

  @property
  def devices(self) -> int:
    """Devices of all slices, as JAX counts them."""
    return self.chips * self.chip.devices


def names() -> list[str]:
  """Returns every name under which a slice is sold."""
  return [
    f'{bought}-{count * chip.counted}'
    for chip in chips.CHIPS
    for bought in chip.bought
    for count in chip.slices
  ]


def parse(name: str, *, slices: int = 1) -> Topology:
  """Parses the name of a slice.

  Args:
    name: as sold, 'v5p-256', whose number counts chips or TensorCores as the
      vendor does; or sides in chips, 'v5p:4x4x8'.
    slices: number of such slices.

  Raises:
    SettingError: no such slice; names the nearest one.
  """
  if slices < 1:
    raise SettingError('num_slices', slices, '1 or more')
  generation, _, sides = name.strip().lower().partition(':')
  for chip in chips.CHIPS if sides else ():
    if generation in (chip.name, *chip.bought):
      return Topology(chip, _grid(name, sides, chip), slices)
  for chip in chips.CHIPS:
    for count, grid in chip.slices.items():
      for bought in chip.bought:
        if generation == f'{bought}-{count * chip.counted}' and not sides:
          return Topology(chip, grid, slices)
  if re.match(r'v[1-4]\b', generation):
    raise SettingError(
      'topology',
      name,
      f'a slice of {", ".join(chip.name for chip in chips.CHIPS)}',
      hint=f'{generation[:2]} is not supported',
    )
  raise SettingError(
    'topology',
    name,
    f'the name of a slice; the nearest is {_nearest(generation)}',
    hint='others are named by their sides in chips, such as v6e:4x8 or '
    'v5p:4x4x12',
  )


def devices(topology: Topology) -> list:
  """Returns descriptions of the devices of slices, from libtpu's compiler.

  Raises:
    SettingError: libtpu is not installed, or does not support the slice.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise SettingError(
      'topology',
      topology.raw,
      'the compiler of TPUs, which is not installed',
      hint="pip install 'spacetime-video[tpu-compile]', or in a clone pip "
      "install -e '.[tpu-compile]' (Linux on x86-64)",
    )
  import jax
  from jax.experimental import topologies

  # Without these libtpu queries the metadata server of a TPU machine, warns,
  # and blocks a second dry run beside this one.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  options = {'num_slices': topology.slices} if topology.slices > 1 else {}
  if topology.chips == topology.slices:
    # A host has four chips or more, unless it is said to have one.
    options['chips_per_host_bounds'] = (1, 1, 1)
  try:
    described = topologies.get_topology_desc(
      platform='tpu', topology_name=topology.raw, **options
    )
  except jax.errors.JaxRuntimeError as e:
    raise SettingError(
      'topology',
      topology.raw,
      f'a slice that libtpu supports: {str(e).splitlines()[0]}',
    ) from e
  return described.devices


def _grid(name: str, sides: str, chip: chips.Chip) -> tuple[int, ...]:
  example = f'{chip.name}:{"x".join(["4"] * chip.sides)}'
  if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', sides):
    raise SettingError(
      'topology', name, f'sides in chips after the colon, such as {example}'
    )
  grid = tuple(int(side) for side in sides.split('x'))
  if len(grid) != chip.sides:
    raise SettingError(
      'topology',
      name,
      f'{chip.sides} sides instead of {len(grid)}, such as {example}',
    )
  return grid


def _nearest(name: str) -> str:
  """Returns the nearest name; of the same chip the nearest by number."""
  generation, _, number = name.rpartition('-')
  same = [n for n in names() if n.rpartition('-')[0] == generation]
  if same and number.isdigit():
    target = math.log(max(int(number), 1))

    def distance(name: str) -> float:
      return abs(math.log(int(name.rpartition('-')[2])) - target)

    return min(same, key=distance)
  return difflib.get_close_matches(name, names(), n=1, cutoff=0.0)[0]
