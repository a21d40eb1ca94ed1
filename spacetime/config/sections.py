"""What a config's sections are: dataclasses that check themselves."""

import dataclasses
import math

from spacetime.data import packing as packing_lib
from spacetime.data.digits import world as world_lib
from spacetime.diffusion import guidance, schedules, solvers
from spacetime.models.transformer import rope

RENDERS = ('files', 'live')


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The clips.

  Attributes:
    name: 'digits', the embedded world, 'folder', your own files, or 'cache',
      the latents that spacetime encode has made of either.
    dir: where the digits' records are (made if not there), your clips, or the
      cache.
    clips: digits to render for training.
    held_out_clips: digits to render for each held-out split.
    world: the digits world; its frames, height and width hold for a folder.
    batch_size: clips per step, over all devices.
    caption_dropout: share of clips whose caption is left out.
    crop: (frames, height, width) to cut out of each clip; None is the whole.
    fps: frames a second of the clips, for playing and resampling.
    packing: how clips of mixed sizes come together; None has one size.
    render: of the digits, 'files' renders all before the first step, 'live'
      each as it is read: the same clips.
    workers: processes that read clips; 0 has threads alone. Of packed rows
      their number decides which clips share a row.
  """

  name: str
  dir: str
  clips: int
  held_out_clips: int
  world: world_lib.World
  batch_size: int
  caption_dropout: float
  crop: tuple[int, int, int] | None
  fps: float
  # Not in the repr, which names the clips.
  packing: packing_lib.SequencePacking | packing_lib.Buckets | None = (
    dataclasses.field(default=None, repr=False)
  )
  render: str = dataclasses.field(default='files', repr=False)
  workers: int = dataclasses.field(default=0, repr=False)

  def __post_init__(self):
    if self.render not in RENDERS or self.workers < 0:
      raise ValueError(
        f'data.render={self.render!r}, data.workers={self.workers}: expected '
        f'one of {RENDERS}, and 0 or more'
      )
    if self.name not in ('digits', 'folder', 'cache'):
      raise ValueError(
        f"data.name={self.name!r}: expected 'digits', 'folder' or 'cache'"
      )
    if self.name == 'cache' and self.crop is not None:
      raise ValueError(
        f'data.crop={self.crop}: expected None, since latents are not cropped; '
        'make the cache of smaller clips'
      )
    if self.world.mixed is not None and (self.name != 'digits' or self.crop):
      raise ValueError(
        f'data.world.mixed with data.name={self.name!r}, data.crop={self.crop}'
        ": expected 'digits' and None; leave data.world.mixed out"
      )
    if self.world.mixed is not None and self.packing is None:
      raise ValueError(
        'data.world.mixed without data.packing: expected dict(kind='
        "'rows', length=..., clips=..., frames=...) or dict(kind='buckets', "
        'look_ahead=...)'
      )
    if isinstance(self.packing, packing_lib.Buckets):
      mixed = self.world.mixed
      self.packing.check(
        sizes=1 if mixed is None else len(mixed.shapes), batch=self.batch_size
      )
    if self.batch_size < 1:
      raise ValueError(f'data.batch_size={self.batch_size}: expected 1 or more')
    if not 0 <= self.caption_dropout <= 1:
      raise ValueError(
        f'data.caption_dropout={self.caption_dropout}: expected 0 to 1'
      )

  @property
  def longest(self) -> int:
    """Frames of the longest clip that is trained on."""
    return self.crop[0] if self.crop else self.world.longest


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The run: steps, and how often what happens. 0 is never.

  Attributes:
    pca_init_clips: clips from whose patches the transformer's first and last
      layers start (training/pca_init.py); 0 starts them from nothing.
    pca_init_rank: how many of their components enter; 0 is a third of the
      width. Of a run that starts from a checkpoint, whose first layer lets in
      fewer, the next ones come in too.
    skip_nan: whether a step that gives NaN or infinity is left out.
    spike: a step whose loss is above it is left out; 0 sets no bound.
  """

  steps: int
  ema: float
  accumulate: int
  log_every: int
  evaluate_every: int
  sheet_every: int
  checkpoint_every: int
  keep: int
  held_out: int
  pca_init_clips: int = 0
  pca_init_rank: int = 0
  skip_nan: bool = True
  spike: float = 0.0

  def __post_init__(self):
    if self.steps < 1 or self.accumulate < 1 or self.log_every < 1:
      raise ValueError(
        f'train.steps={self.steps}, train.accumulate={self.accumulate}, '
        f'train.log_every={self.log_every}: expected 1 or more'
      )
    if self.held_out < 1 or self.keep < 1:
      raise ValueError(
        f'train.held_out={self.held_out}, train.keep={self.keep}: expected 1 '
        'or more'
      )
    if min(self.pca_init_clips, self.pca_init_rank) < 0:
      raise ValueError(
        f'train.pca_init_clips={self.pca_init_clips}, train.pca_init_rank='
        f'{self.pca_init_rank}: expected 0 or more'
      )
    if not 0 <= self.ema < 1:
      raise ValueError(f'train.ema={self.ema}: expected 0 <= ema < 1')
    if self.spike < 0:
      raise ValueError(
        f'train.spike={self.spike}: expected a loss above 0, or 0 for no bound'
      )

  @property
  def limit(self) -> float | None:
    """The largest loss of a step that is taken; None takes every step."""
    if self.spike:
      return self.spike
    return math.inf if self.skip_nan else None


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """What `sample` does unless its flags say otherwise.

  Attributes:
    boundary: of a model with two transformers, the level below which the
      second one serves; None with one.
    guidance_2: guidance of the second; None is that of the first.
    strength: the level to begin at; below 1 what is there is edited.
    guidance_kind, guidance_given, zero_steps, momentum, radius, parallel: see
      guidance.Guidance.
    step_cache: see models/step_cache.py; 0 computes every step whole.
    rope_scaling: of clips longer than those trained on, of rope.SCALINGS.
    temperature: of the noise; see sampling/sampler.py.
  """

  steps: int
  solver: str
  guidance: float
  interval: tuple[float, float]
  shift: float
  schedule: str = 'even'
  boundary: float | None = None
  guidance_2: float | None = None
  strength: float = 1.0
  guidance_kind: str = 'cfg'
  guidance_given: float = 1.0
  zero_steps: int = 1
  momentum: float = -0.5
  radius: float | None = None
  parallel: float = 0.0
  step_cache: float = 0.0
  rope_scaling: str = 'none'
  temperature: float = 1.0

  def __post_init__(self):
    solvers.get(self.solver)
    self.grid()
    if not 0 <= self.step_cache < 1:
      raise ValueError(
        f'step_cache={self.step_cache}: expected 0, which is none, or a share '
        'below 1; change --step_cache'
      )
    if not 0 <= self.temperature <= 1:
      raise ValueError(
        f'temperature={self.temperature}: expected 0, no noise, to 1, as '
        'trained; change --temperature'
      )
    if self.temperature != 1 != self.strength:
      raise ValueError(
        f'temperature={self.temperature}, strength={self.strength}: expected '
        'one of them to be 1, since an edit begins with the noise of its '
        'strength; leave --temperature out'
      )
    if self.rope_scaling not in rope.SCALINGS:
      raise ValueError(
        f'rope_scaling={self.rope_scaling!r}: expected one of {rope.SCALINGS}; '
        'change --rope_scaling'
      )
    if self.boundary is not None and not 0 < self.boundary < 1:
      raise ValueError(
        f'sampling.boundary={self.boundary}: expected a level between 0 and 1'
      )
    if self.guidance_2 is None:
      return
    if self.boundary is None:
      raise ValueError(
        f'guidance_2={self.guidance_2}: expected none, since the model has one '
        'transformer, not two; leave --guidance_2 out'
      )
    if self.guidance_2 < 0 or self.guidance == 1 != self.guidance_2:
      raise ValueError(
        f'guidance={self.guidance}, guidance_2={self.guidance_2}: expected 0 '
        'or more, and both 1 if the first is, which leaves guidance out; '
        'change --guidance or --guidance_2'
      )

  def rule(self) -> guidance.Guidance:
    """How predictions are combined."""
    return guidance.Guidance(
      scale=self.guidance,
      kind=self.guidance_kind,
      interval=self.interval,
      given=self.guidance_given,
      zero_steps=self.zero_steps,
      momentum=self.momentum,
      radius=self.radius,
      parallel=self.parallel,
    )

  def grid(self) -> schedules.Schedule:
    """The levels, without the steps that CFG-Zero* leaves out.

    Its velocity is zero there, which leaves the noise as it is. Left out, such
    a step is no part of what a multistep solver remembers either. An edit
    begins with more than noise: it keeps them.
    """
    grid = schedules.make_schedule(
      self.schedule,
      self.steps,
      shift=self.shift,
      solver=self.solver,
      strength=self.strength,
    )
    rule = self.rule()
    zero = rule.kind == 'cfg_zero' and rule.tells_text and self.strength == 1
    return grid.without_first(rule.zero_steps) if zero else grid
