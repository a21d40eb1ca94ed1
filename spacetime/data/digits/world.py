"""The vocabulary of the digits world: sizes, characters, scenes and rules.

Letters of this folder: P characters (players) in a scene, G cells of a glyph;
a trailing 2 is (y, x) in pixels, y downwards.
"""

import dataclasses
import json

import numpy as np

from spacetime import SettingError
from spacetime.data.resolutions import Sizes

# The names are the captions' words; the numbers are sRGB.
COLOURS = {
  'red': (240, 44, 44),
  'orange': (255, 136, 0),
  'yellow': (250, 232, 40),
  'green': (40, 205, 64),
  'cyan': (40, 220, 230),
  'blue': (56, 108, 255),
  'magenta': (240, 60, 230),
  'white': (245, 245, 245),
}
BACKGROUND_COLOURS = {
  'black': (8, 8, 10),
  'navy': (16, 24, 66),
  'teal': (8, 54, 60),
  'olive': (48, 50, 14),
  'brown': (62, 38, 18),
  'maroon': (64, 14, 24),
  'plum': (52, 20, 64),
  'charcoal': (52, 54, 58),
}
DIRECTIONS = {
  'left': (0, -1),
  'right': (0, 1),
  'up': (-1, 0),
  'down': (1, 0),
  'up-left': (-1, -1),
  'up-right': (-1, 1),
  'down-left': (1, -1),
  'down-right': (1, 1),
}
MOTIONS = (*DIRECTIONS, 'bouncing', 'still', 'circling')
# A smooth path with turns, different for each character, which can be continued
# at both ends. It is used only in worlds that list it; a share of the paths may
# consist of legs of the other motions (wandering.py).
WANDERING = 'wandering'
PANS = {
  'pan left': (0, -1),
  'pan right': (0, 1),
  'pan up': (-1, 0),
  'pan down': (1, 0),
}
CAMERAS = ('still', *PANS, 'zoom in', 'zoom out')
BACKGROUNDS = ('plain', 'vertical', 'horizontal')
SPLITS = ('train', 'validation', 'compositions')

# Shares of the shorter side of the frame. Speeds are the distance covered in
# one clip: 0.8 and 1.7 pixels per frame in 17 frames of 64 pixels.
SIZES = {'small': 0.25, 'medium': 0.32, 'large': 0.39}
SPEEDS = {'slow': 0.21, 'fast': 0.42}

_FULL_WORLD = {
  'digits': tuple(range(10)),
  'colours': tuple(COLOURS),
  'motions': MOTIONS,
  'sizes': tuple(SIZES),
  'speeds': tuple(SPEEDS),
  'backgrounds': BACKGROUNDS,
  'cameras': CAMERAS,
}
_KNOWN = _FULL_WORLD | {'motions': (*MOTIONS, WANDERING)}


@dataclasses.dataclass(frozen=True)
class World:
  """Sizes and contents of scenes; fewer names make an easier world.

  Attributes:
    frames: frames per clip; one frame is an image, where nothing moves.
    height: pixel rows, at least 16.
    width: pixel columns, at least 16.
    max_characters: largest number of characters in a scene.
    min_characters: smallest number, where there is room for them.
    digits: digits that characters show; one listed twice is twice as likely, as
      in the lists below.
    colours: colours of characters.
    motions: motions of characters.
    sizes: sizes of characters.
    speeds: speeds of characters.
    backgrounds: patterns of the background.
    cameras: motions of the camera; see still_camera.
    still_camera: probability of a still camera, if `cameras` has it and others.
    legs: share of wandering characters whose paths consist of legs, in training
      clips only.
    mixed: sizes that training clips are drawn from; None gives all of them
      frames, height and width, which held-out clips always have.

  Raises:
    ValueError: a size out of range or an unknown name.
  """

  frames: int = 17
  height: int = 64
  width: int = 64
  max_characters: int = 3
  digits: tuple[int, ...] = _FULL_WORLD['digits']
  colours: tuple[str, ...] = _FULL_WORLD['colours']
  motions: tuple[str, ...] = _FULL_WORLD['motions']
  sizes: tuple[str, ...] = _FULL_WORLD['sizes']
  speeds: tuple[str, ...] = _FULL_WORLD['speeds']
  backgrounds: tuple[str, ...] = _FULL_WORLD['backgrounds']
  cameras: tuple[str, ...] = _FULL_WORLD['cameras']
  still_camera: float = 0.7
  # Not in the repr, which names held-out clips and those of one size.
  min_characters: int = dataclasses.field(default=1, repr=False)
  legs: float = dataclasses.field(default=0.0, repr=False)
  mixed: Sizes | None = dataclasses.field(default=None, repr=False)

  def __post_init__(self):
    for name, known in _KNOWN.items():
      names = tuple(getattr(self, name))
      object.__setattr__(self, name, names)
      if not names or not set(names) <= set(known):
        raise SettingError(f'data.world.{name}', names, f'some of {known}')
    for name, least in (('frames', 1), ('height', 16), ('width', 16)):
      if getattr(self, name) < least:
        raise ValueError(
          f'{name}={getattr(self, name)}: expected at least {least}; change '
          f'data.{name}'
        )
    if not 1 <= self.max_characters <= len(self.colours):
      raise SettingError(
        'data.world.max_characters',
        self.max_characters,
        f'1 to {len(self.colours)}, the number of `data.world.colours`, since '
        'the characters of a scene differ in colour',
      )
    if not 1 <= self.min_characters <= self.max_characters:
      raise SettingError(
        'data.world.min_characters',
        self.min_characters,
        f'1 to {self.max_characters}, `data.world.max_characters`',
      )
    for name in ('still_camera', 'legs'):
      if not 0 <= getattr(self, name) <= 1:
        raise SettingError(
          f'data.world.{name}', getattr(self, name), 'a probability, 0 to 1'
        )

  def resized(self, frames: int, height: int, width: int) -> 'World':
    """This world with clips of another size, the same for all."""
    return dataclasses.replace(
      self, frames=frames, height=height, width=width, mixed=None
    )

  def drawn(self, rng: np.random.Generator) -> 'World':
    """The world of one training clip, with one of the mixed sizes if any."""
    return self if self.mixed is None else self.resized(*self.mixed.draw(rng))

  def identity(self) -> dict:
    """All fields by name; those outside of the repr only if they are set.

    The name of a rendered data set is computed from them.
    """
    values = dataclasses.asdict(self)
    for field in dataclasses.fields(self):
      if not field.repr and values[field.name] == field.default:
        del values[field.name]
    return values

  def without_wandering(self) -> 'World':
    """This world for evaluation, which cannot score wandering."""
    named = tuple(name for name in self.motions if name != WANDERING)
    return dataclasses.replace(self, motions=named)

  @property
  def longest(self) -> int:
    """Frames of the longest training clip."""
    return self.frames if self.mixed is None else max(self.mixed.durations)

  @property
  def side(self) -> int:
    """The shorter side in pixels, the unit of sizes and speeds."""
    return min(self.height, self.width)

  @property
  def active_motions(self) -> tuple[str, ...]:
    """The motions that scenes draw from: in an image nothing moves."""
    return self.motions if self.frames > 1 else ('still',)

  @property
  def active_cameras(self) -> tuple[str, ...]:
    """The cameras that scenes draw from: in an image they are still."""
    return self.cameras if self.frames > 1 else ('still',)


@dataclasses.dataclass(frozen=True)
class Character:
  """One digit with a colour, a size and a motion.

  Attributes:
    digit: 0 to 9.
    glyph: its handwriting, a row of glyphs.load().
    colour: a name in COLOURS.
    size: a name in SIZES.
    start: (y, x) of its centre in frame 0 before the camera, in pixels.
    motion: a name in MOTIONS or WANDERING, relative to the background.
    speed: a name in SPEEDS.
    path_seed: seed of a wandering path, below 0 if it consists of legs; 0 for
      other motions.
  """

  digit: int
  glyph: int
  colour: str
  size: str
  start: tuple[float, float]
  motion: str
  speed: str
  path_seed: int = 0


@dataclasses.dataclass(frozen=True)
class Background:
  """A plain colour (first == second) or a ramp, top-down or left to right."""

  kind: str
  first: str
  second: str


@dataclasses.dataclass(frozen=True)
class Scene:
  """Everything that a clip shows, apart from the World's sizes."""

  characters: tuple[Character, ...]
  background: Background
  camera: str


def held_out(digit: int, colour: str, motion: str) -> bool:
  """Whether a composition is held out: no training scene contains it.

  45 of the 880 compositions are held out, and 5 of the 80 that wander. The rule
  is (digit + 3 * colour + 7 * motion) % 20 == 4 with the indices of colour in
  COLOURS and of motion in MOTIONS. Every pair of the three, such as each digit
  in each colour, has most of its compositions in training.
  """
  index = digit + 3 * _COLOUR_INDEX[colour] + 7 * _MOTION_INDEX[motion]
  return index % 20 == 4


_COLOUR_INDEX = {name: i for i, name in enumerate(COLOURS)}
_MOTION_INDEX = {name: i for i, name in enumerate((*MOTIONS, WANDERING))}


def to_json(scene: Scene) -> str:
  """Formats a scene as one line of JSON; from_json restores it exactly.

  The format stores the path's seed as 'way', for wandering characters only.
  """
  tree = dataclasses.asdict(scene)
  for character in tree['characters']:
    if path_seed := character.pop('path_seed'):
      character['way'] = path_seed
  return json.dumps(tree)


def _character(*, start, **values) -> Character:
  path_seed = values.pop('way', 0)
  return Character(start=tuple(start), path_seed=path_seed, **values)


def from_json(text: str) -> Scene:
  """Parses a scene that to_json wrote.

  Raises:
    ValueError: not a scene; the message names missing or unknown keys.
  """
  try:
    tree = json.loads(text)
    characters = tuple(
      _character(**character) for character in tree.pop('characters')
    )
    background = Background(**tree.pop('background'))
    return Scene(characters=characters, background=background, **tree)
  except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
    raise ValueError(
      f'scene={text[:80]!r}: expected the JSON of to_json ({error})'
    ) from error
