"""Constants of chips: memory, peaks, bandwidths, compiler options (no JAX).

A device is what JAX counts: a chip, or half of one on TPU7x. Sources: vendors'
data sheets; for TPUs the specification tables of docs.cloud.google.com/tpu/docs
(v5e, v5p, v6e, tpu7x, read in 2026), where the bandwidth of the interconnect is
given for a chip, all links and both directions together.
"""

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Mapping

GIB = 2**30

# Communication overlaps with the matrix unit: gathers of the next layer's
# weights, scatters of the last one's gradients, all-to-all of tokens. Windowed
# einsums over a ring of permutes would prevent that.
_OVERLAP = {
  'xla_tpu_enable_latency_hiding_scheduler': 'true',
  'xla_enable_async_all_gather': 'true',
  'xla_enable_async_all_reduce': 'true',
  'xla_enable_async_collective_permute': 'true',
  'xla_tpu_overlap_compute_collective_tc': 'true',
  'xla_jf_spmd_threshold_for_windowed_einsum_mib': '1000000',
}
# Not on v5e, where the compiler refuses it.
_EXCHANGE = {'xla_tpu_enable_async_all_to_all': 'true'}
# Fuses the steps of gathers with those of a matrix product; on v5e only.
_FUSED = {
  'xla_tpu_enable_async_collective_fusion': 'true',
  'xla_tpu_enable_async_collective_fusion_fuse_all_gather': 'true',
  'xla_tpu_enable_async_collective_fusion_multiple_steps': 'true',
}
# SparseCores run collectives. A gather that shall overlap has to stay one: the
# compiler would turn it into a sum of updates.
_SPARSE_CORE = {
  'xla_tpu_prefer_async_allgather_to_allreduce': 'true',
  'xla_tpu_enable_sparse_core_collective_offload_all_gather': 'true',
  'xla_tpu_enable_sparse_core_collective_offload_reduce_scatter': 'true',
  'xla_tpu_enable_sparse_core_collective_offload_all_reduce': 'true',
  'xla_tpu_use_tc_device_shape_on_sc': 'true',
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """A generation of TPU; sizes and rates are those of one device.

  Attributes:
    name: in names of topologies, such as 'v6e' of 'v6e:16x16'.
    kind: `device_kind` of its devices.
    bought: prefixes of the names of slices, such as 'v5litepod' of
      'v5litepod-16'.
    counted: units per chip in the number of such a name: TensorCores on some
      generations, chips on others.
    devices: devices per chip.
    sides: dimensions of the torus.
    hbm: bytes that a program may use, according to the compiler (the memory of
      a chip less what the system reserves).
    flops: dense bfloat16 peak, FLOP/s.
    hbm_bandwidth: bytes/s of memory.
    link: bytes/s over one link of the interconnect in one direction.
    dcn: bytes/s over the data-centre network.
    options: compiler options.
    slices: grids of chips that are sold, by number of chips.
  """

  name: str
  kind: str
  bought: tuple[str, ...]
  counted: int
  devices: int
  sides: int
  hbm: float
  flops: float
  hbm_bandwidth: float
  link: float
  dcn: float
  options: Mapping[str, str]
  slices: Mapping[int, tuple[int, ...]]


_FLAT = {
  1: (1, 1),
  4: (2, 2),
  8: (2, 4),
  16: (4, 4),
  32: (4, 8),
  64: (8, 8),
  128: (8, 16),
  256: (16, 16),
}
_CUBES = {
  4: (2, 2, 1),
  8: (2, 2, 2),
  16: (2, 2, 4),
  32: (2, 4, 4),
  64: (4, 4, 4),
  128: (4, 4, 8),
  256: (4, 8, 8),
  512: (8, 8, 8),
  1024: (8, 8, 16),
  2048: (8, 16, 16),
}

CHIPS = (
  Chip(
    name='v5e',
    kind='TPU v5 lite',
    bought=('v5e', 'v5litepod'),
    counted=1,
    devices=1,
    sides=2,
    hbm=15.75 * GIB,
    flops=197e12,
    hbm_bandwidth=819e9,
    link=50e9,
    dcn=3.1e9,
    options=_OVERLAP | _FUSED,
    slices=_FLAT,
  ),
  Chip(
    name='v5p',
    kind='TPU v5',
    bought=('v5p',),
    counted=2,
    devices=1,
    sides=3,
    hbm=95.74 * GIB,
    flops=459e12,
    hbm_bandwidth=2765e9,
    link=100e9,
    dcn=6.2e9,
    options=_OVERLAP | _EXCHANGE,
    slices=_CUBES,
  ),
  Chip(
    name='v6e',
    kind='TPU v6 lite',
    bought=('v6e',),
    counted=1,
    devices=1,
    sides=2,
    hbm=31.25 * GIB,
    flops=918e12,
    hbm_bandwidth=1638e9,
    link=100e9,
    dcn=12.5e9,
    options=_OVERLAP
    | _EXCHANGE
    | _SPARSE_CORE
    | {'xla_tpu_scoped_vmem_limit_kib': '98304'},
    slices=_FLAT,
  ),
  Chip(
    name='tpu7x',
    kind='TPU7x',
    bought=('tpu7x',),
    counted=2,
    devices=2,
    sides=3,
    hbm=94.75 * GIB,
    flops=1153.5e12,
    hbm_bandwidth=3690e9,
    link=50e9,  # a chip's links serve two devices
    dcn=6.2e9,
    options=_OVERLAP
    | _EXCHANGE
    | _SPARSE_CORE
    | {'xla_tpu_scoped_vmem_limit_kib': '65536'},
    slices=_CUBES,
  ),
)

# Dense bfloat16 peak of one device, FLOP/s, by `device_kind`.
PEAKS = {chip.kind: chip.flops for chip in CHIPS} | {
  'TPU v4': 275e12,
  'TPU v5e': 197e12,
  'TPU v5p': 459e12,
  'TPU v6e': 918e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H200': 989e12,
  'NVIDIA B200': 2250e12,
}


def options(kind: str) -> dict[str, str]:
  """Returns the compiler options for a kind of device; {} if it is no TPU."""
  for chip in CHIPS:
    if chip.kind == kind:
      return dict(chip.options)
  return {}


def utilisation(
  flops_per_second: float, *, kind: str, devices: int
) -> float | None:
  """Returns the model FLOPs utilisation in [0, 1]; None for an unknown peak."""
  peak = PEAKS.get(kind)
  return None if peak is None else flops_per_second / (peak * devices)


def versions() -> dict[str, str]:
  """Returns the versions of the packages that compile programs, by name."""
  numbers = {}
  for name in ('jax', 'jaxlib', 'libtpu'):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      numbers[name] = importlib.metadata.version(name)
  return numbers
