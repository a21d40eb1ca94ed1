"""Training stages: which clips a run learns from, step by step.

A stage is a mixture of kinds of clips with shares of its tokens. Stages follow
one another by steps: images before clips, close-ups before wide shots, small
before large, as large video models are trained. Every record hangs on the seed,
the stage and its place in the stage alone.

Source: images first and low resolution first as in Wan team 2025, arXiv
2503.20314, section 4.3, and Movie Gen (Polyak et al. 2024), arXiv 2410.13720,
section 3.1.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spacetime import SettingError
from spacetime.data import resolutions
from spacetime.data.digits import world as world_lib

# What a clip shows of its scene or video; all but 'wide' need the digits world.
FRAMINGS = ('wide', 'window', 'one', 'near')
# Records of a stage: more than any run reads.
ENDLESS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of clip in a stage's mixture.

  Attributes:
    share: of the stage's tokens, relative to those of the other kinds.
    frames: of a clip.
    height: rows.
    width: columns.
    framing: 'wide', whole scenes or videos; or, of the digits world, parts of
      scenes: 'window', around all characters, 'one', around one of those that
      the caption names (framing.draw), or 'near' (framing.draw_near).
    spread: of both windows, from 0, characters in the middle, to 1, anywhere.
    sizes: sizes that clips are drawn from in place of the three above.
    world: fields of data.world that this kind changes, such as
      (('max_characters', 1),).
  """

  share: float = 1.0
  frames: int = 1
  height: int = 64
  width: int = 64
  framing: str = 'wide'
  spread: float = 1.0
  sizes: resolutions.Sizes | None = None
  world: tuple[tuple[str, Any], ...] = ()

  def __post_init__(self):
    if self.share <= 0:
      raise SettingError('data.stages.mix.share', self.share, 'above 0')
    if self.framing not in FRAMINGS:
      raise SettingError(
        'data.stages.mix.framing',
        self.framing,
        f'one of {FRAMINGS}',
      )
    if not 0 <= self.spread <= 1:
      raise SettingError('data.stages.mix.spread', self.spread, '0 to 1')
    for name in ('frames', 'height', 'width'):
      if getattr(self, name) < 1:
        raise SettingError(
          f'data.stages.mix.{name}', getattr(self, name), '1 or more'
        )

  @property
  def shapes(self) -> list[tuple[int, int, int]]:
    """Every (frames, height, width) of its clips."""
    if self.sizes is not None:
      return self.sizes.shapes
    return [(self.frames, self.height, self.width)]

  def draw(self, rng: np.random.Generator) -> tuple[int, int, int]:
    """(frames, height, width) of one clip."""
    if self.sizes is not None:
      return self.sizes.draw(rng)
    return self.frames, self.height, self.width


@dataclasses.dataclass(frozen=True)
class Stage:
  """A mixture that holds for some steps.

  Attributes:
    steps: how many; the last stage goes on to the end of the run.
    mix: kinds of clips.
    shift: factor of flow.shift, the noise levels' shift, in this stage.
    cond: chance that a clip draws conditioning frames at all; see the section
      `conditioning` for which.
    tokens: of a batch, where clips are gathered by size; 0 takes the number of
      data.packing.
  """

  steps: int
  mix: tuple[Kind, ...]
  shift: float = 1.0
  cond: float = 1.0
  tokens: int = 0

  def __post_init__(self):
    if self.steps < 1:
      raise SettingError('data.stages.steps', self.steps, '1 or more')
    if not self.mix:
      raise SettingError(
        'data.stages.mix', self.mix, 'one kind of clip or more'
      )
    if self.shift <= 0:
      raise SettingError('data.stages.shift', self.shift, 'above 0')
    if not 0 <= self.cond <= 1:
      raise SettingError('data.stages.cond', self.cond, '0 to 1')

  def chances(
    self, tokens: Callable[[tuple[int, int, int]], int]
  ) -> np.ndarray:
    """Chance of each kind for a record, from the shares of tokens.

    Args:
      tokens: (frames, height, width) -> tokens of a clip.
    """
    mean = [np.mean([tokens(shape) for shape in k.shapes]) for k in self.mix]
    weight = np.array([k.share for k in self.mix]) / np.array(mean)
    return weight / weight.sum()


@dataclasses.dataclass(frozen=True)
class StageSource:
  """The records of one stage: dicts with video, caption, shift and cond.

  Attributes:
    stage: mixture.
    number: of the stage, from 0.
    chances: of the mixture's kinds, see Stage.chances.
    read: (rng, kind, (frames, height, width)) -> record with video and caption;
      see `stage_reader` of a data source.
    seed: at least 0.
  """

  stage: Stage
  number: int
  chances: tuple[float, ...]
  read: Callable[..., Mapping[str, Any]]
  seed: int

  def __len__(self) -> int:
    return ENDLESS

  def _draw(
    self, index: int
  ) -> tuple[np.random.Generator, Kind, tuple[int, int, int]]:
    rng = np.random.default_rng([self.seed, 3 + self.number, index])
    kind = self.stage.mix[rng.choice(len(self.chances), p=self.chances)]
    return rng, kind, kind.draw(rng)

  def clip_size(self, index: int) -> tuple[int, int, int]:
    """(frames, height, width) of a record, without reading it."""
    return self._draw(index)[2]

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self.read(*self._draw(index))
    return dict(
      record,
      shift=np.float32(self.stage.shift),
      cond=np.float32(self.stage.cond),
    )


def kind_world(world: world_lib.World, kind: Kind) -> world_lib.World:
  """The world of a kind: data.world with the fields that the kind changes."""
  return dataclasses.replace(world, mixed=None, **dict(kind.world))
