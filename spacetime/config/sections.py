"""Sections of a config that belong to no single lower room."""

import dataclasses
import math

from spacetime import SettingError
from spacetime.models import text_encoder
from spacetime.models.autoencoder import compact, identity, wan

# The text encoder is trained with the transformer, or has published weights.
FLOW_MAP_TEACHERS = ('clips', 'model')
TEXT_KINDS = ('trained', 'frozen')
OPTIMIZERS = ('adamw', 'muon')
MOMENTS = ('float32', 'bfloat16')
# The largest b2 that a second moment in bfloat16 follows: its eight bits round
# away any change of less than a share of 2^-9.
MAX_BFLOAT16_B2 = 0.98
# Of a run: clips, and steps between actions, of which 0 is none.
NEVER_NEGATIVE = (
  *('pca_init_clips', 'pca_init_rank', 'scored_clips'),
  *('evaluate_every', 'sheet_every', 'checkpoint_every', 'probe_every'),
)
CONDITIONING_KINDS = ('none', 'first', 'first_k', 'last_k', 'ends', 'random')


@dataclasses.dataclass(frozen=True)
class AutoencoderSection:
  """The autoencoder of a model.

  Attributes:
    kind: 'identity' (pixels as latents), 'wan' (Wan's video autoencoder) or
      'compact' (a small one, for CPUs), of the sizes beside it, or 'weights'
      (a trained one).
    weights: where kind='weights', its folder or the name of a bundled one.
    network: sizes of the others; None where kind='weights'.
  """

  kind: str
  weights: str = ''
  network: (
    identity.IdentityAutoencoder
    | wan.WanAutoencoderConfig
    | compact.CompactConfig
    | None
  ) = None


@dataclasses.dataclass(frozen=True)
class TextSection:
  """The text encoder of a model.

  Attributes:
    length: text tokens of a prompt; shorter ones are padded.
    kind: 'trained' with the transformer, or 'frozen' (published weights).
    encoder: sizes of the network.
  """

  length: int
  encoder: text_encoder.TextConfig
  kind: str = 'trained'

  def __post_init__(self):
    if self.kind not in TEXT_KINDS:
      raise SettingError('text.kind', self.kind, f'one of {TEXT_KINDS}')
    if self.length < 1:
      raise SettingError('text.length', self.length, '1 or more')


@dataclasses.dataclass(frozen=True)
class FrameConditioningConfig:
  """Which frames of a training clip are conditioning frames: weights of the
  kinds, which need not add to one.

  Attributes:
    none: weight of no conditioning frame.
    first: weight of the first frame alone.
    first_k: weight of the first 1 to f - 1 latent frames.
    last_k: weight of the last 1 to f - 1 latent frames.
    ends: weight of the first 1 or more and the last 1 or more, mostly few.
    random: weight of each frame with probability one half.
    context_noise_prob: share of clips whose conditioning frames carry noise.
    context_noise: highest noise level of conditioning frames; the level of a
      clip is uniform up to it.
    independent_noise_prob: share of clips that draw a noise level for every
      frame.

  Source: noise on conditioning frames as in Ho et al. 2022 (Cascaded
  Diffusion), arXiv 2106.15282, section 4.2; independent levels as in Chen et
  al. 2024 (Diffusion Forcing), arXiv 2407.01392.
  """

  none: float = 0.7
  first: float = 0.1
  first_k: float = 0.05
  last_k: float = 0.05
  ends: float = 0.05
  random: float = 0.05
  context_noise_prob: float = 0.0
  context_noise: float = 0.3
  independent_noise_prob: float = 0.0

  def __post_init__(self):
    if min(self.weights) < 0 or sum(self.weights) <= 0:
      raise SettingError(
        'conditioning',
        self.weights,
        'weights that are not negative, one above 0',
      )
    for name in (
      'context_noise_prob',
      'context_noise',
      'independent_noise_prob',
    ):
      if not 0 <= getattr(self, name) <= 1:
        raise SettingError(
          f'conditioning.{name}', getattr(self, name), '0 to 1'
        )

  @property
  def weights(self) -> tuple[float, ...]:
    """The weights of CONDITIONING_KINDS."""
    return tuple(getattr(self, name) for name in CONDITIONING_KINDS)

  @property
  def has_one_timestep(self) -> bool:
    """Whether all frames of a clip always have the clip's timestep."""
    return not self.independent_noise_prob and not any(
      weight
      for name, weight in zip(CONDITIONING_KINDS, self.weights, strict=True)
      if name != 'none'
    )


@dataclasses.dataclass(frozen=True)
class FlowMapConfig:
  """Training of a flow map, which replaces a model and its guidance.

  Attributes:
    guidance: scale of guidance that becomes part of the weights; 1 is none.
    delta: half the distance in time of the central difference that stands for a
      derivative.
    velocity: share of a batch's clips that learn the velocity, a step of no
      length.
    to_data: share of the clips that learn steps to data; the others learn steps
      to any smaller noise level.
    teacher: where velocities come from: 'clips' (AnyFlow), or 'model', the
      guided prediction of the model that the run starts from, which stays in
      memory. It costs one more prediction, and its velocities vary less: the
      flow map makes the clips of that model.

  Source: Gu et al. 2026 (AnyFlow), arXiv 2605.13724; velocities of a model:
  Sabour et al. 2025 (Align Your Flow), arXiv 2506.14603.
  """

  guidance: float = 3.0
  delta: float = 0.005
  velocity: float = 0.5
  to_data: float = 0.25
  teacher: str = 'clips'

  def __post_init__(self):
    if self.guidance < 1:
      raise SettingError('flow_map.guidance', self.guidance, '1 or more')
    if not 0 < self.delta < 0.5:
      raise SettingError('flow_map.delta', self.delta, 'above 0, below 0.5')
    if self.teacher not in FLOW_MAP_TEACHERS:
      raise SettingError(
        'flow_map.teacher', self.teacher, f'one of {FLOW_MAP_TEACHERS}'
      )
    for name in ('velocity', 'to_data'):
      if not 0 <= getattr(self, name) <= 1:
        raise SettingError(f'flow_map.{name}', getattr(self, name), '0 to 1')
    if self.velocity + self.to_data > 1:
      raise SettingError(
        'flow_map.to_data',
        self.to_data,
        f'at most {1 - self.velocity:g} with '
        f'`flow_map.velocity`={self.velocity}',
      )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The optimizer and its schedule.

  Attributes:
    name: 'adamw', or 'muon' for the matrices inside blocks and AdamW for the
      rest (Jordan 2024; RMS-matched as in Liu et al. 2025, arXiv 2502.16982).
    learning_rate: learning rate on the plateau.
    adam_rate: learning rate of the parameters that Muon leaves to Adam.
    warmup: steps from 0 to the plateau.
    decay: share of all steps, at the end, that falls linearly to 0.
    clip: largest norm of the gradient.
    b1: decay of the first moment.
    b2: decay of the second moment.
    weight_decay: decoupled weight decay, of matrices only.
    moments: dtype in which moments are stored; they are computed in float32.
    newton_schulz: iterations of Muon; 3 are enough for small batches.
    freeze: regular expressions; parameters whose full name, such as
      'dit/patch_embed/kernel', matches one keep their initial value.
  """

  name: str = 'adamw'
  learning_rate: float = 1e-4
  adam_rate: float = 1e-3
  warmup: int = 100
  decay: float = 0.3
  clip: float = 1.0
  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.0
  moments: str = 'float32'
  newton_schulz: int = 5
  freeze: tuple[str, ...] = ()

  def __post_init__(self):
    if self.name not in OPTIMIZERS:
      raise SettingError('optimizer.name', self.name, f'one of {OPTIMIZERS}')
    for name in ('learning_rate', 'adam_rate', 'clip', 'newton_schulz'):
      if getattr(self, name) <= 0:
        raise SettingError(f'optimizer.{name}', getattr(self, name), 'above 0')
    for name in ('warmup', 'weight_decay'):
      if getattr(self, name) < 0:
        raise SettingError(
          f'optimizer.{name}', getattr(self, name), '0 or more'
        )
    for name in ('b1', 'b2'):
      if not 0 <= getattr(self, name) < 1:
        raise SettingError(
          f'optimizer.{name}', getattr(self, name), '0 or more, below 1'
        )
    if not 0 <= self.decay <= 1:
      raise SettingError('optimizer.decay', self.decay, '0 to 1')
    if self.moments not in MOMENTS:
      raise SettingError('optimizer.moments', self.moments, f'one of {MOMENTS}')
    if self.moments == 'bfloat16' and self.b2 > MAX_BFLOAT16_B2:
      raise SettingError(
        'optimizer.b2',
        self.b2,
        f"at most {MAX_BFLOAT16_B2} with `optimizer.moments`='bfloat16', since "
        'so slow an average would round to no change',
      )
    if isinstance(self.freeze, str):
      raise SettingError(
        'optimizer.freeze',
        self.freeze,
        f'a tuple of patterns, such as ({self.freeze!r},)',
      )


@dataclasses.dataclass(frozen=True)
class ReconstructionConfig:
  """Weights of the terms of the autoencoder's loss.

  Attributes:
    squared: weight of the mean squared error, which starts learning where
      absolute error stalls at the background (the median of a sparse picture).
    absolute: weight of the mean absolute error, which keeps edges sharp.
    scales: coarser scales (2x, 4x, ...) at which absolute error is added.
    gradient: weight of the absolute error of differences between neighbouring
      pixels.
    kl: weight of the divergence of the posterior from a unit normal, per
      latent value.
  """

  squared: float = 1.0
  absolute: float = 1.0
  scales: int = 2
  gradient: float = 0.5
  kl: float = 1e-6

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value < 0:
        raise SettingError(f'reconstruction.{field.name}', value, '0 or more')
    if not self.squared and not self.absolute:
      raise SettingError(
        'reconstruction.squared', 0, 'above 0 without `reconstruction.absolute`'
      )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The length of a run and the intervals of its actions, in steps; 0 is never.

  Attributes:
    steps: steps of the run.
    ema: decay of the average of the parameters, in [0, 1).
    accumulate: parts of a batch whose gradients are summed one after another.
    log_every: steps between lines of metrics.
    evaluate_every: steps between held-out losses.
    sheet_every: steps between contact sheets of held-out prompts.
    checkpoint_every: steps between checkpoints.
    keep: checkpoints kept.
    held_out: held-out clips to measure on.
    pca_init_clips: clips whose principal components initialize the first and
      last layers of the transformer (training/pca_init.py); 0 for random
      layers.
    pca_init_rank: principal components used; 0 is a third of the width.
    skip_nan: leaves out steps whose loss or gradient is not finite.
    spike: leaves out steps whose loss is above it; 0 sets no bound.
    probe_every: steps between measures of the loss with one word of a caption
      wrong (training/caption_probe.py), of the digits world; 0 is never.
    scored_clips: held-out prompts whose clips are sampled with each contact
      sheet and scored, of the digits world: count, colour, digit, motion and
      more, as evaluate reports them; 0 scores none.
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
  probe_every: int = 0
  scored_clips: int = 0

  def __post_init__(self):
    for name in ('steps', 'accumulate', 'log_every', 'held_out', 'keep'):
      if getattr(self, name) < 1:
        raise SettingError(f'train.{name}', getattr(self, name), '1 or more')
    for name in NEVER_NEGATIVE:
      if getattr(self, name) < 0:
        raise SettingError(f'train.{name}', getattr(self, name), '0 or more')
    if not 0 <= self.ema < 1:
      raise SettingError('train.ema', self.ema, '0 <= ema < 1')
    if self.scored_clips > self.held_out:
      raise SettingError(
        'train.scored_clips',
        self.scored_clips,
        f'at most `train.held_out`={self.held_out}',
      )
    if self.spike < 0:
      raise SettingError(
        'train.spike', self.spike, 'a loss above 0, or 0 for no bound'
      )

  @property
  def limit(self) -> float | None:
    """The largest loss of a step that is applied; None applies every step."""
    if self.spike:
      return self.spike
    return math.inf if self.skip_nan else None
