"""Expansion of short prompts to full captions of the digits world."""

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
# Names of motions besides their phrases; the longest comes first.
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
  """Completes a prompt to a caption of the grammar.

  Attributes that the prompt has for a digit (colour, size, motion, speed), the
  background and the camera are preserved; others are drawn with a seed from the
  prompt. Words outside the grammar are dropped. A prompt without a digit is
  returned unchanged.

  Args:
    text: a prompt, such as 'a red 3 moving left'.
    world: world to draw from.
  """
  rng = np.random.default_rng(zlib.crc32(text.encode()))
  plain = ' '.join(_WORD.findall(text.lower()))
  camera, plain = _camera(plain)
  words = plain.split()
  positions = [
    i
    for i, word in enumerate(words)
    if word in _NUMBERS and not _NOUNS & set(words[i + 1 : i + 2])
  ]
  if not positions:
    return text
  clauses, colours = [], _colours(words, positions)
  for number, position in enumerate(positions):
    before = words[positions[number - 1] + 1 if number else 0 : position]
    after = words[position + 1 : [*positions, len(words)][number + 1]]
    colour = colours[number]
    if colour is None:
      free = [c for c in world.colours if c not in colours]
      colour = colours[number] = _pick(rng, free or world.colours)
    clauses.append(
      _clause(_NUMBERS[words[position]], colour, before, after, rng, world)
    )
  ground = [w for w in words if w in world_lib.BACKGROUND_COLOURS][:2]
  if not ground:
    ground = [_pick(rng, tuple(world_lib.BACKGROUND_COLOURS))]
  background = ' and '.join(dict.fromkeys(ground))
  article = 'an' if background.startswith('o') else 'a'
  shot = grammar.CAMERA_PHRASES[camera or 'still'][0]
  joined = clauses[0]
  if len(clauses) > 1:
    joined = f'{", ".join(clauses[:-1])} and {clauses[-1]}'
  full = f'{joined} on {article} {background} background. {_upper(shot)}.'
  return _upper(full)


def _upper(text: str) -> str:
  return text[0].upper() + text[1:]


def _pick(rng, options):
  return options[rng.integers(len(options))]


def _camera(plain: str) -> tuple[str | None, str]:
  """The camera that the text names, and the text without it."""
  for name, phrases in grammar.CAMERA_PHRASES.items():
    for phrase in phrases:
      if phrase in plain:
        return name, plain.replace(phrase, ' ')
  return None, plain


def _colours(words: list[str], positions: list[int]) -> list[str | None]:
  """The last colour before each digit and after the one before it."""
  colours, first = [], 0
  for position in positions:
    names = [w for w in words[first:position] if w in world_lib.COLOURS]
    colours.append(names[-1] if names else None)
    first = position + 1
  return colours


def _clause(digit, colour, before, after, rng, world) -> str:
  """'a small red 3 moves slowly left'."""
  size = _named(before, grammar.SIZE_WORDS) or _pick(rng, world.sizes)
  speed = _named(after, grammar.SPEED_WORDS) or _pick(rng, world.speeds)
  motion = _motion(after) or _pick(rng, world.active_motions)
  verb = grammar.MOTION_PHRASES[motion][0][1]
  verb = verb.replace('@', f' {grammar.SPEED_WORDS[speed][0]}')
  return f'a {size} {colour} {digit} {verb}'


def _named(words: list[str], table: dict) -> str | None:
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
