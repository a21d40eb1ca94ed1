"""Slices of TPUs that are not there, by the names that one buys them under.

Names are read without JAX: launchers use them on machines that lack it.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re

from spacetime.sharding import chips


@dataclasses.dataclass(frozen=True)
class Topology:
  """Slices of one generation.

  Attributes:
    chip: the generation.
    grid: chips along each side of a slice's torus.
    slices: how many, joined by the data-centre network.
  """

  chip: chips.Chip
  grid: tuple[int, ...]
  slices: int = 1

  @property
  def raw(self) -> str:
    """As the compiler calls a slice: 'v6e:16x16'."""
    return f'{self.chip.name}:{"x".join(map(str, self.grid))}'

  @property
  def chips(self) -> int:
    """Of all slices."""
    return math.prod(self.grid) * self.slices

  @property
  def devices(self) -> int:
    """Of all slices, as JAX counts them."""
    return self.chips * self.chip.devices


def names() -> list[str]:
  """Every name under which a slice is bought."""
  return [
    f'{bought}-{count * chip.counted}'
    for chip in chips.CHIPS
    for bought in chip.bought
    for count in chip.slices
  ]


def parse(name: str, *, slices: int = 1) -> Topology:
  """The slices of a name.

  Args:
    name: as bought, 'v5p-256', whose number counts chips or TensorCores as its
      vendor does; or raw, 'v5p:4x4x8', sides in chips.
    slices: how many of them.

  Raises:
    ValueError: there is no such slice; names the nearest.
  """
  if slices < 1:
    raise ValueError(f'--num_slices={slices}: expected 1 or more')
  generation, _, sides = name.strip().lower().partition(':')
  for chip in chips.CHIPS if sides else ():
    if generation in (chip.name, *chip.bought):
      return Topology(chip, _grid(name, sides, chip), slices)
  for chip in chips.CHIPS:
    for count, grid in chip.slices.items():
      for bought in chip.bought:
        if generation == f'{bought}-{count * chip.counted}' and not sides:
          return Topology(chip, grid, slices)
  raise ValueError(
    f'--topology={name}: no such slice; the nearest is {_nearest(generation)}. '
    'Others are named by their sides in chips, such as v6e:4x8 or v5p:4x4x12'
  )


def devices(topology: Topology) -> list:
  """The devices of slices that are not there, from libtpu's compiler.

  Raises:
    ValueError: libtpu is not installed, or knows no such slice.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise ValueError(
      '--topology: the compiler of TPUs is not installed; pip install '
      "'spacetime-video[tpu-compile]', or in a clone pip install -e "
      "'.[tpu-compile]' (Linux on x86-64)"
    )
  import jax
  from jax.experimental import topologies

  # Without these libtpu looks for the machine of a TPU, complains, and keeps a
  # second dry run from starting beside this one.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  more = {'num_slices': topology.slices} if topology.slices > 1 else {}
  try:
    described = topologies.get_topology_desc(
      platform='tpu', topology_name=topology.raw, **more
    )
  except jax.errors.JaxRuntimeError as e:
    raise ValueError(
      f'--topology={topology.raw}: libtpu knows no such slice: '
      f'{str(e).splitlines()[0]}'
    ) from e
  return described.devices


def _grid(name: str, sides: str, chip: chips.Chip) -> tuple[int, ...]:
  if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', sides):
    raise ValueError(
      f'--topology={name}: expected sides in chips after the colon, such as '
      f'{chip.name}:{"x".join(["4"] * chip.sides)}'
    )
  grid = tuple(int(side) for side in sides.split('x'))
  if len(grid) != chip.sides:
    raise ValueError(
      f'--topology={name}: {len(grid)} sides, expected {chip.sides}, such as '
      f'{chip.name}:{"x".join(["4"] * chip.sides)}'
    )
  return grid


def _nearest(name: str) -> str:
  """The known name that is nearest: of the same chip by number, if given."""
  generation, _, number = name.rpartition('-')
  same = [n for n in names() if n.rpartition('-')[0] == generation]
  if same and number.isdigit():
    wanted = math.log(max(int(number), 1))

    def apart(known: str) -> float:
      return abs(math.log(int(known.rpartition('-')[2])) - wanted)

    return min(same, key=apart)
  return difflib.get_close_matches(name, names(), n=1, cutoff=0.0)[0]
