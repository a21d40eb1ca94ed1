"""Framings of the digits world: what part of a scene a training clip shows.

A curriculum begins with close-ups whose middle is the character, where the
mean picture depends on what the caption says, and frees the position later. A
window is rendered, not cut out, so it may lie partly outside of the frame.

Letters: see world.py.
"""

import dataclasses

import numpy as np

from spacetime import SettingError
from spacetime.data import stages
from spacetime.data.digits import captions, glyphs, render, scenes
from spacetime.data.digits import world as world_lib

ATTEMPTS = 20
# Pixels between a character and the edge of a window, as far as possible.
EDGE = 0.5
# A window at spread 0 is off the middle by this much, so that characters lie
# anywhere between two pixels.
JITTER = 0.5
# How far a character may be from the middle of a window near it, as a share.
NEAR = 0.45


@dataclasses.dataclass(frozen=True)
class Window:
  """A part of a scene in time and space.

  Attributes:
    first: first frame of the scene that is shown.
    frames: how many are shown.
    corner_2: (y, x) of the window's corner in the scene's pixels.
    height: rows.
    width: columns.
  """

  first: int
  frames: int
  corner_2: tuple[float, float]
  height: int
  width: int

  def crop(self, tree: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The drawing of `render.drawing` as it is seen through the window."""
    shown = slice(self.first, self.first + self.frames)
    corner_2 = np.asarray(self.corner_2, np.float32)
    ramp_F3 = tree['ramp_F3'][shown].copy()
    ramp_F3[:, 0] += ramp_F3[:, 1:] @ corner_2
    return dict(
      tree,
      centre_FP2=tree['centre_FP2'][shown] - corner_2,
      size_FP=tree['size_FP'][shown],
      ramp_F3=ramp_F3,
    )

  def render(self, tree: dict[str, np.ndarray]) -> np.ndarray:
    """frames_FHWC, uint8, of a whole drawing."""
    return render.render(self.crop(tree), height=self.height, width=self.width)


def draw(
  rng: np.random.Generator,
  *,
  world: world_lib.World,
  split: str,
  frames: int,
  height: int,
  width: int,
  spread: float,
  one: bool = False,
) -> tuple[world_lib.Scene, Window, dict[str, np.ndarray]]:
  """A random scene and a window in which all of its characters stay whole.

  Scenes whose characters do not fit into the window are drawn again, at last
  with the first character alone.

  Args:
    rng: the only source of chance.
    world: what the scene may contain, and its own sizes; a window of one frame
      shows a scene of one.
    split: see `scenes.sample_scene`.
    frames: of the window.
    height: rows of the window.
    width: columns of the window.
    spread: 0 puts the characters' bounding box in the middle, 1 anywhere in
      the window; between them a share of that room.
    one: whether only one character, drawn at random, has to stay whole: the
      caption names all, so that its colour alone says which digit is shown.

  Returns:
    (scene, window, drawing of the whole scene).

  Raises:
    SettingError: a window that is longer than the scene.
  """
  if not 1 <= frames <= world.frames:
    raise SettingError(
      'data.stages.mix.frames',
      frames,
      f'at most {world.frames}, the frames of the scenes that windows show',
    )
  if frames == 1:
    world = dataclasses.replace(world, frames=1)
  for attempt in range(ATTEMPTS):
    scene = scenes.sample_scene(rng, world=world, split=split)
    if attempt == ATTEMPTS - 1:
      scene = dataclasses.replace(scene, characters=scene.characters[:1])
    first = int(rng.integers(world.frames - frames + 1))
    tree = render.drawing(scene, world)
    shown = range(len(scene.characters))
    if one:
      shown = [rng.choice(shown)]
    low_2, high_2 = _box(scene, tree, slice(first, first + frames), shown)
    room_2 = np.array([height, width]) - 2 * EDGE - (high_2 - low_2)
    if (room_2 >= 0).all():
      break
  off_2 = np.maximum(spread * np.maximum(room_2, 0) / 2, JITTER)
  corner_2 = (low_2 + high_2) / 2 - np.array([height, width]) / 2
  corner_2 = corner_2 + rng.uniform(-off_2, off_2)
  return scene, _window(first, frames, corner_2, height, width), tree


def draw_near(
  rng: np.random.Generator,
  *,
  world: world_lib.World,
  split: str,
  frames: int,
  height: int,
  width: int,
) -> tuple[world_lib.Scene, Window, dict[str, np.ndarray]]:
  """As `draw`, with a window inside the frame near one of the characters,
  which may be cut: for an autoencoder, whose clips need no caption."""
  scene = scenes.sample_scene(rng, world=world, split=split)
  tree = render.drawing(scene, world)
  first = int(rng.integers(world.frames - frames + 1))
  number = rng.integers(len(scene.characters))
  size_2 = np.array([height, width])
  corner_2 = tree['centre_FP2'][first + frames // 2, number] - size_2 / 2
  corner_2 = corner_2 + rng.uniform(-NEAR, NEAR, 2) * size_2
  free_2 = np.maximum(np.array([world.height, world.width]) - size_2, 0)
  corner_2 = corner_2.clip(0, free_2).round()
  return scene, _window(first, frames, corner_2, height, width), tree


def _window(first, frames, corner_2, height, width) -> Window:
  corner = tuple(float(value) for value in corner_2.round(2))
  return Window(first, frames, corner, height, width)


def example(
  rng: np.random.Generator,
  *,
  world: world_lib.World,
  split: str,
  framing: str,
  frames: int,
  height: int,
  width: int,
  spread: float,
) -> dict:
  """A clip in a framing: video (F, H, W, 3) uint8, caption, scene.

  Args:
    rng: the only source of chance.
    world: what scenes may contain.
    split: see `scenes.sample_scene`.
    framing: 'wide', a whole scene of these sizes; 'window', 'one' or 'near', a
      part of a scene of the world's own sizes, see `draw` and `draw_near`.
    frames: of the clip.
    height: rows.
    width: columns.
    spread: of a window, see `draw`.
  """
  if framing == 'wide':
    world = world.resized(frames, height, width)
    scene = scenes.sample_scene(rng, world=world, split=split)
    video_FHWC = render.clip(scene, world)
    caption = captions.caption(scene, rng, world=world)
  else:
    world = dataclasses.replace(world, mixed=None)
    how = dict(
      world=world, split=split, frames=frames, height=height, width=width
    )
    if framing == 'near':
      scene, window, tree = draw_near(rng, **how)
    else:
      one = framing == 'one'
      scene, window, tree = draw(rng, **how, spread=spread, one=one)
    video_FHWC = window.render(tree)
    position = _position_in(window, scene, tree)
    caption = captions.caption(scene, rng, world=world, position=position)
  return {
    'video': video_FHWC,
    'caption': caption,
    'scene': world_lib.to_json(scene),
  }


def _box(scene, tree, frames: slice, numbers) -> tuple[np.ndarray, np.ndarray]:
  """The bounding box of the ink of these characters over some frames."""
  numbers = list(numbers)
  rows = [scene.characters[number].glyph for number in numbers]
  centre_FP2 = tree['centre_FP2'][frames][:, numbers]
  half_FP2 = tree['size_FP'][frames][:, numbers, None] * glyphs.extents()[rows]
  low_2 = (centre_FP2 - half_FP2).min((0, 1))
  return low_2, (centre_FP2 + half_FP2).max((0, 1))


def _position_in(window: Window, scene, tree):
  """Character -> the words for its position in the window's first frame."""
  corner_2 = np.asarray(window.corner_2)
  size_2 = np.array([window.height, window.width])

  def position(character) -> str:
    number = scene.characters.index(character)
    seen_2 = tree['centre_FP2'][window.first, number] - corner_2
    return captions.position_words(seen_2 / size_2)

  return position


@dataclasses.dataclass(frozen=True)
class StageReader:
  """Draws clips of training stages, see data/stages.py.

  Attributes:
    world: what scenes may contain; windows show scenes of its sizes.
    split: one of world.SPLITS.
  """

  world: world_lib.World
  split: str = 'train'

  def __call__(
    self,
    rng: np.random.Generator,
    kind: stages.Kind,
    shape: tuple[int, int, int],
  ) -> dict:
    return example(
      rng,
      world=stages.kind_world(self.world, kind),
      split=self.split,
      framing=kind.framing,
      frames=shape[0],
      height=shape[1],
      width=shape[2],
      spread=kind.spread,
    )
