"""The `data` section of a config: the clips of a run."""

import dataclasses
import math
import types

from spacetime import SettingError
from spacetime.data import packing as packing_lib
from spacetime.data import sources
from spacetime.data import stages as stages_lib
from spacetime.data.digits import world as world_lib
from spacetime.data.resolutions import Sizes

RENDERS = ('files', 'live')
CHANGES = ('keep', 'adopt')


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The clips of a run and how they are batched.

  Attributes:
    name: source of the clips, a module of data/sources: 'digits' (the built-in
      world), 'folder' (your own files) or 'cache' (latents written by spacetime
      encode).
    dir: folder of the digits' records (rendered there if absent), of your
      clips, or of the cache.
    clips: digits clips to render for training.
    held_out_clips: digits clips to render for each held-out split.
    frames: frames of a clip.
    height: height of a clip in pixels.
    width: width of a clip in pixels.
    world: scenes of the digits; its sizes are those of the clips.
    batch_size: clips per step, over all devices; rows where clips are packed.
    caption_dropout: share of clips that are trained without their caption.
    crop: (frames, height, width) cut out of each clip; None keeps clips whole.
    fps: frames per second of the clips, for playback and resampling. None is
      the rate of the cache or, in spacetime encode, of the checkpoint.
    mixed: sizes that training clips are drawn from; None trains on one size.
      Held-out clips always have frames, height and width.
    packing: how clips of mixed sizes share a batch: kind='rows' or 'buckets';
      None for clips of one size.
    render: for the digits, 'files' renders every clip before the first step,
      'live' renders each clip when it is read; the clips are the same.
    workers: processes that read clips; 0 reads in threads alone.
    max_unreadable: of your own clips, the largest share that may be unreadable
      or too short: these are skipped and reported. One more ends the run.
      0 allows none; any other share allows one clip at least.
    changes: what a resumed run does where clips were added, removed or changed
      since it began: 'keep' goes on with its own list, in which removed clips
      are skipped and new ones left out; 'adopt' takes the clips as they are
      now, in a new order.
    stages: mixtures of clips that follow one another by steps, in place of one
      mixture for the whole run (data/stages.py). With `data.packing.tokens`
      the clips of a batch are a multiple of batch_size.
  """

  name: str
  dir: str
  clips: int
  held_out_clips: int
  # Sizes are not in the repr, since the world's names the clips.
  frames: int = dataclasses.field(repr=False)
  height: int = dataclasses.field(repr=False)
  width: int = dataclasses.field(repr=False)
  world: world_lib.World
  batch_size: int
  caption_dropout: float
  crop: tuple[int, int, int] | None
  fps: float | None
  mixed: Sizes | None = dataclasses.field(default=None, repr=False)
  packing: packing_lib.SequencePacking | packing_lib.Buckets | None = (
    dataclasses.field(default=None, repr=False)
  )
  render: str = dataclasses.field(default='files', repr=False)
  workers: int = dataclasses.field(default=0, repr=False)
  stages: tuple[stages_lib.Stage, ...] = dataclasses.field(
    default=(), repr=False
  )
  max_unreadable: float = dataclasses.field(default=0.2, repr=False)
  changes: str = dataclasses.field(default='keep', repr=False)

  def __post_init__(self):
    world = dataclasses.replace(
      self.world,
      frames=self.frames,
      height=self.height,
      width=self.width,
      mixed=self.mixed,
    )
    object.__setattr__(self, 'world', world)
    if self.render not in RENDERS:
      raise SettingError('data.render', self.render, f'one of {RENDERS}')
    if self.workers < 0:
      raise SettingError('data.workers', self.workers, '0 or more')
    if self.name not in sources.names():
      raise SettingError('data.name', self.name, f'one of {sources.names()}')
    if self.source.HAS_LATENTS and self.crop is not None:
      raise SettingError(
        'data.crop',
        self.crop,
        'None, since latents are not cropped',
        hint='encode smaller clips',
      )
    self._check_crop()
    if self.mixed is not None:
      self._check_mixed()
    if self.stages:
      self._check_stages()
    elif isinstance(self.packing, packing_lib.Buckets):
      sizes = 1 if self.mixed is None else len(self.mixed.shapes)
      self.packing.check(sizes=sizes, batch=self.batch_size)
    if self.changes not in CHANGES:
      raise SettingError('data.changes', self.changes, f'one of {CHANGES}')
    if not 0 <= self.max_unreadable < 1:
      raise SettingError(
        'data.max_unreadable', self.max_unreadable, '0 or more, below 1'
      )
    if self.batch_size < 1:
      raise SettingError('data.batch_size', self.batch_size, '1 or more')
    if self.fps is not None and not 0 < self.fps < math.inf:
      raise SettingError('data.fps', self.fps, 'above 0')
    if not 0 <= self.caption_dropout <= 1:
      raise SettingError('data.caption_dropout', self.caption_dropout, '0 to 1')

  def _check_crop(self):
    sizes = (self.frames, self.height, self.width)
    if self.crop is not None and not (
      isinstance(self.crop, tuple)
      and len(self.crop) == len(sizes)
      and all(isinstance(size, int) for size in self.crop)
      and all(
        1 <= crop <= size for crop, size in zip(self.crop, sizes, strict=True)
      )
    ):
      raise SettingError(
        'data.crop',
        self.crop,
        f'None, or frames, height and width of at most {sizes}',
      )

  def _check_mixed(self) -> None:
    if not self.source.HAS_MIXED_SIZES:
      raise SettingError(
        'data.mixed', self.mixed, f'None with `data.name`={self.name!r}'
      )
    if self.crop is not None:
      raise SettingError('data.crop', self.crop, 'None with `data.mixed`')
    if self.packing is None:
      raise SettingError(
        'data.packing',
        None,
        "dict(kind='rows', length=..., clips=..., frames=...) or "
        "dict(kind='buckets', look_ahead=...) with `data.mixed`",
      )

  @property
  def source(self) -> types.ModuleType:
    """The source of the clips; see Source in data/splits.py."""
    return sources.get(self.name)

  def _check_stages(self) -> None:
    if self.source.HAS_LATENTS:
      raise SettingError(
        'data.name', self.name, 'a source of clips with `data.stages`'
      )
    scenes = self.source.HAS_MIXED_SIZES  # the digits world
    if scenes and self.render != 'live':
      raise SettingError(
        'data.render', self.render, "'live' with `data.stages`"
      )
    for name in ('crop', 'mixed'):
      if getattr(self, name) is not None:
        raise SettingError(
          f'data.{name}',
          getattr(self, name),
          'None with `data.stages`, which have sizes of their own',
        )
    kinds = [kind for stage in self.stages for kind in stage.mix]
    for kind in kinds:
      if not scenes and (kind.framing != 'wide' or kind.world):
        raise SettingError(
          'data.stages',
          (kind.framing, kind.world),
          "framing='wide' and no world with `data.name`='folder'",
        )
    sizes = {shape for kind in kinds for shape in kind.shapes}
    if len(sizes) > 1 and self.packing is None:
      raise SettingError(
        'data.packing',
        None,
        f"dict(kind='buckets', look_ahead=..., tokens=...) or "
        f"dict(kind='rows', ...) with `data.stages` of {len(sizes)} sizes",
      )

  @property
  def shapes(self) -> list[tuple[int, int, int]]:
    """Every (frames, height, width) of the training clips, uncropped."""
    if self.stages:
      kinds = [kind for stage in self.stages for kind in stage.mix]
      return sorted({shape for kind in kinds for shape in kind.shapes})
    return [self.size] if self.mixed is None else self.mixed.shapes

  @property
  def size(self) -> tuple[int, int, int]:
    """(frames, height, width) of a clip."""
    return self.frames, self.height, self.width

  @property
  def max_frames(self) -> int:
    """Frames of the longest training clip."""
    if self.stages:
      return max(frames for frames, _, _ in self.shapes)
    return self.crop[0] if self.crop else self.world.longest
