"""Short prompts of the digits world, told at length in its grammar."""

import re
import zlib

import numpy as np

from spacetime.data.digits import grammar
from spacetime.data.digits import world as world_lib

_WORD = re.compile(r'[a-z]+(?:-[a-z]+)*|[0-9]+')
_NUMBERS = {
  **{str(i): i for i in range(10)},
  **{word: i for i, word in enumerate(grammar.DIGIT_WORDS)},
}
_NOUNS = {'digit', 'digits', 'number', 'numbers'}
# What a motion is called besides its phrases; the longest comes first.
_PLAIN = (
  *(
    (words, f'{rows}-{columns}')
    for rows, alias in (('up', 'upper'), ('down', 'lower'))
    for columns in ('left', 'right')
    for words in (
      f'{rows} and {columns}',
      f'{rows}-{columns}',
      f'{rows} {columns}',
      f'{alias} {columns}',
    )
  ),
  *((word, word) for word in ('left', 'right', 'up', 'down')),
  *(('bounce', 'bouncing'), ('hop', 'bouncing'), ('circle', 'circling')),
  *(('round', 'circling'), ('still', 'still'), ('rest', 'still')),
  *(('wander', 'wandering'), ('roam', 'wandering')),
)


def expand(text: str, *, world: world_lib.World) -> str:
  """The prompt with all that it leaves open filled in, within the grammar.

  What it tells of each digit (colour, size, motion, speed), of the background
  and of the camera stays; the rest is drawn, the same for the same prompt.
  Words that the grammar does not have are left out, and a prompt that names no
  digit is returned as it is.

  Args:
    text: such as 'a red 3 moving left'.
    world: what may be drawn.
  """
  rng = np.random.default_rng(zlib.crc32(text.encode()))
  plain = ' '.join(_WORD.findall(text.lower()))
  camera, plain = _camera(plain)
  words = plain.split()
  places = [
    i
    for i, word in enumerate(words)
    if word in _NUMBERS and not _NOUNS & set(words[i + 1 : i + 2])
  ]
  if not places:
    return text
  clauses, colours = [], _colours(words, places)
  for number, place in enumerate(places):
    before = words[places[number - 1] + 1 if number else 0 : place]
    after = words[place + 1 : [*places, len(words)][number + 1]]
    colour = colours[number]
    if colour is None:
      free = [c for c in world.colours if c not in colours]
      colour = colours[number] = _pick(rng, free or world.colours)
    clauses.append(
      _clause(_NUMBERS[words[place]], colour, before, after, rng, world)
    )
  ground = [w for w in words if w in world_lib.BACKGROUND_COLOURS][:2]
  if not ground:
    ground = [_pick(rng, tuple(world_lib.BACKGROUND_COLOURS))]
  told = ' and '.join(dict.fromkeys(ground))
  article = 'an' if told.startswith('o') else 'a'
  shot = grammar.CAMERA_PHRASES[camera or 'still'][0]
  joined = clauses[0]
  if len(clauses) > 1:
    joined = f'{", ".join(clauses[:-1])} and {clauses[-1]}'
  full = f'{joined} on {article} {told} background. {_upper(shot)}.'
  return _upper(full)


def _upper(text: str) -> str:
  return text[0].upper() + text[1:]


def _pick(rng, options):
  return options[rng.integers(len(options))]


def _camera(plain: str) -> tuple[str | None, str]:
  """The camera that is told, and the text without it."""
  for name, phrases in grammar.CAMERA_PHRASES.items():
    for phrase in phrases:
      if phrase in plain:
        return name, plain.replace(phrase, ' ')
  return None, plain


def _colours(words: list[str], places: list[int]) -> list[str | None]:
  """The last colour before each digit and after the one before it."""
  found, first = [], 0
  for place in places:
    told = [w for w in words[first:place] if w in world_lib.COLOURS]
    found.append(told[-1] if told else None)
    first = place + 1
  return found


def _clause(digit, colour, before, after, rng, world) -> str:
  """'a small red 3 moves slowly left'."""
  size = _told(before, grammar.SIZE_WORDS) or _pick(rng, world.sizes)
  speed = _told(after, grammar.SPEED_WORDS) or _pick(rng, world.speeds)
  motion = _motion(after) or _pick(rng, world.active_motions)
  verb = grammar.MOTION_PHRASES[motion][0][1]
  verb = verb.replace('@', f' {grammar.SPEED_WORDS[speed][0]}')
  return f'a {size} {colour} {digit} {verb}'


def _told(words: list[str], table: dict) -> str | None:
  for name, options in table.items():
    if set(options) & set(words):
      return name
  return None


def _motion(words: list[str]) -> str | None:
  """By a phrase of the grammar, or by a plain word for it."""
  speeds = {w for pair in grammar.SPEED_WORDS.values() for w in pair}
  text = ' '.join(word for word in words if word not in speeds)
  for motion, pairs in grammar.MOTION_PHRASES.items():
    for pair in pairs:
      if any(f' {p.replace("@", "")} ' in f' {text} ' for p in pair):
        return motion
  for plain, motion in _PLAIN:
    if re.search(rf'\b{plain}', text):
      return motion
  return None
