"""Efficiency of the matrix unit, from runs that others have published.

At its peak the matrix unit would make every estimate 1.5 to 2.3 times too good,
above all for attention: heads of 128 fill half of the 256 x 256 unit of v6e and
TPU7x, and softmax takes one exponential for every 4 E FLOPs. The table holds
measured runs of Wan 14B; the efficiency of attention is what remains of their
seconds when the dense layers run at DENSE of the peak.
"""

import dataclasses
import statistics

from spacetime.models import flops
from spacetime.sharding import chips

# Share of the peak at which dense layers run, assumed: large bfloat16 products
# reach 70 to 80 % of a TPU's peak.
DENSE = 0.75
# Wan 14B: width, layers, hidden width, text tokens and width, patch, features.
_WAN_14B = dict(
  text_tokens=512,
  width=5120,
  layers=40,
  mlp=13824,
  text_width=4096,
  patch_volume=64,
  timesteps=1,
  frequencies=256,
)


@dataclasses.dataclass(frozen=True)
class PublishedRun:
  """A run of Wan 14B on clips of 81 frames of 720 x 1280 (75,600 tokens).

  Attributes:
    source: where it was published.
    chip: generation of TPU, of chips.CHIPS.
    program: 'train' or 'sample'.
    device_seconds: seconds x devices for one clip: of a training step, or of
      one forward pass.
    forwards: forward passes of the attention kernels that were run.
    products: products of its backward kernels, to two of the forward pass; 0
      when sampling.
    kernel: 'library' or 'own'.
  """

  source: str
  chip: str
  program: str
  device_seconds: float
  forwards: int = 1
  products: int = 0
  kernel: str = 'library'

  @property
  def attention(self) -> float:
    """Share of the peak at which the attention kernels ran."""
    model = dict(_WAN_14B, tokens=75_600)
    attended = model['layers'] * flops.attention(
      tokens=75_600, text_tokens=512, width=5120
    )
    dense = flops.transformer(**model) - attended
    if self.program == 'train':
      dense *= 4  # forward twice, and a backward pass of two
      attended *= self.forwards + self.products / 2
    peak = _chip(self.chip).flops
    seconds = self.device_seconds - dense / (DENSE * peak)
    return attended / peak / seconds


# Sampling counts two forward passes a step, for guidance; its seconds are those
# of the complete pipeline. A step of tpu7x-64 is of 17.04 clips, by its 384.12
# TFLOP/s a device.
RUNS = (
  PublishedRun(
    'MaxDiffusion README: training, 36.0 s a step on 4 chips, full remat',
    'v5p',
    'train',
    36.0 * 4,
    forwards=2,
    products=7,
  ),
  PublishedRun(
    'MaxDiffusion pull request 273: the same with offload, 32.8 s',
    'v5p',
    'train',
    32.8 * 4,
    products=7,
  ),
  PublishedRun(
    'MaxDiffusion pull request 487: training, 13.57 s a step on 64 devices',
    'tpu7x',
    'train',
    13.57 * 64 / 17.04,
    products=5,
    kernel='own',
  ),
  PublishedRun(
    'MaxDiffusion pull request 376: 40 steps in 251.45 s on 8 chips',
    'v6e',
    'sample',
    251.45 * 8 / 80,
  ),
  PublishedRun(
    'MaxDiffusion README: 50 steps of Wan 2.1 in 249 s on 8 devices',
    'tpu7x',
    'sample',
    249.0 * 8 / 100,
  ),
  PublishedRun(
    'MaxDiffusion README: 40 steps of Wan 2.2 in 194 s on 8 devices',
    'tpu7x',
    'sample',
    194.0 * 8 / 80,
  ),
)
# Side of the matrix unit. A generation without runs of its own takes those of
# the other generation with the same unit.
UNIT = {'v5e': 128, 'v5p': 128, 'v6e': 256, 'tpu7x': 256}


@dataclasses.dataclass(frozen=True)
class Efficiency:
  """Shares of the peak of the matrix unit, and where they come from.

  Attributes:
    attention: of the attention kernels.
    dense: of everything else.
    basis: the runs behind it, as text.
  """

  attention: float
  dense: float
  basis: str

  def seconds(self, dense: float, attention: float, *, peak: float) -> float:
    """Seconds of the matrix unit.

    Args:
      dense: FLOPs without those of attention kernels.
      attention: FLOPs of attention kernels.
      peak: FLOP/s of all devices that share them.
    """
    return (dense / self.dense + attention / self.attention) / peak


def efficiency(chip: str, program: str) -> Efficiency:
  """Efficiency of a generation of TPU in a program.

  Runs of the same chip and program come first, then those of a chip with the
  same matrix unit, then those of the other program.

  Args:
    chip: name of a chips.Chip.
    program: 'train' or 'sample'; others count as 'sample'.
  """
  program = program if program == 'train' else 'sample'
  near = [run for run in RUNS if UNIT[run.chip] == UNIT[chip]]
  choices = (
    ([r for r in RUNS if (r.chip, r.program) == (chip, program)], ''),
    ([r for r in near if r.program == program], ', of another generation'),
    ([r for r in near if r.chip == chip], ', of another program'),
    (near, ', of another generation and program'),
  )
  runs, remark = next((runs, remark) for runs, remark in choices if runs)
  share = statistics.mean(run.attention for run in runs)
  sources = '; '.join(run.source for run in runs)
  return Efficiency(
    share,
    DENSE,
    f'attention at {share:.0%} of the peak as measured by others{remark} '
    f'({sources}), dense layers at {DENSE:.0%}',
  )


def _chip(name: str) -> chips.Chip:
  return next(chip for chip in chips.CHIPS if chip.name == name)
