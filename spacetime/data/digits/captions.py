"""Captions from a grammar: pure functions of a scene and a random generator.

Every caption names each character's digit, colour and motion, and a moving
camera; longer ones add size, position, speed and background.
"""

from collections.abc import Callable

import numpy as np

from spacetime.data.digits import paths
from spacetime.data.digits import world as world_lib
from spacetime.data.digits.grammar import (
  CAMERA_PHRASES,
  COUNT_WORDS,
  DIGIT_WORDS,
  MOTION_PHRASES,
  SIZE_WORDS,
  SPEED_WORDS,
)


def caption(
  scene: world_lib.Scene,
  rng: np.random.Generator,
  *,
  world: world_lib.World,
  position: Callable[[world_lib.Character], str] | None = None,
) -> str:
  """One caption of at most 60 words, in a phrasing drawn at random.

  Args:
    scene: what the clip shows.
    rng: the only source of chance.
    world: of the scene.
    position: character -> words for its position in the first frame; None
      takes the whole scene as the frame.
  """
  phrasing = _pick(rng, PHRASINGS)
  position = position or (lambda c: _position(c, scene, world))
  text = phrasing(scene, rng, position)
  return text[0].upper() + text[1:] if phrasing is not _tags else text


def canonical_caption(scene: world_lib.Scene) -> str:
  """The one plain caption of a scene, for evaluation prompts."""
  clauses = [
    f'a {c.size} {c.colour} {c.digit} {_verb(c)}' for c in scene.characters
  ]
  text = f'{_join(clauses)} on {_article(_ground(scene))} background.'
  if scene.camera != 'still':
    text += f' {_sentence(CAMERA_PHRASES[scene.camera][0])}'
  return text[0].upper() + text[1:]


def named(text: str, character: world_lib.Character) -> bool:
  """Whether a caption names this character's digit, colour and motion."""
  words = text.lower().replace(',', ' ').replace('.', ' ').split()
  plain = ' '.join(word for word in words if word not in _ADVERBS)
  digit = {str(character.digit), DIGIT_WORDS[character.digit]} & set(words)
  return bool(
    digit
    and character.colour in words
    and any(
      phrase.replace('@', '') in plain
      for pair in MOTION_PHRASES[character.motion]
      for phrase in pair
    )
  )


_ADVERBS = {word for pair in SPEED_WORDS.values() for word in pair}


def _pick(rng, options):
  return options[rng.integers(len(options))]


def _article(words: str) -> str:
  return (
    f'an {words}' if words.startswith(('orange', 'olive')) else f'a {words}'
  )


def _join(clauses: list[str]) -> str:
  if len(clauses) == 1:
    return clauses[0]
  return f'{", ".join(clauses[:-1])} and {clauses[-1]}'


def _sentence(text: str) -> str:
  return text[0].upper() + text[1:] + '.'


def _verb(character: world_lib.Character) -> str:
  return MOTION_PHRASES[character.motion][0][1].replace('@', '')


def _ground(scene: world_lib.Scene) -> str:
  background = scene.background
  if background.kind == 'plain':
    return background.first
  return f'{background.first} and {background.second}'


def _motion(character, rng, *, form: int, adverb: bool) -> str:
  """The participle (form 0) or the verb (form 1), with its speed or not."""
  phrase = _pick(rng, MOTION_PHRASES[character.motion])[form]
  word = f' {_pick(rng, SPEED_WORDS[character.speed])}' if adverb else ''
  return phrase.replace('@', word)


def _cast(scene, rng) -> list[tuple[world_lib.Character, str]]:
  """The characters in any order, with digits as numerals or as words."""
  spelt = rng.random() < 0.5
  order = rng.permutation(len(scene.characters))
  characters = [scene.characters[i] for i in order]
  return [
    (c, DIGIT_WORDS[c.digit] if spelt else str(c.digit)) for c in characters
  ]


def _camera(scene, rng, *, still: float = 0.0) -> str:
  """The camera's phrase; that of a still camera with probability `still`."""
  if scene.camera == 'still' and rng.random() >= still:
    return ''
  return _pick(rng, CAMERA_PHRASES[scene.camera])


def _background(scene, rng) -> str:
  background = scene.background
  if background.kind == 'plain':
    return _article(f'{background.first} background')
  first, second = background.first, background.second
  if background.kind == 'vertical':
    where = ('at the top', 'at the bottom')
  else:
    where = ('on the left', 'on the right')
  return _pick(
    rng,
    (
      f'a background from {first} {where[0]} to {second} {where[1]}',
      f'a {first} to {second} gradient',
    ),
  )


def _position(character, scene, world) -> str:
  """The character's position in frame 0, in thirds of the frame."""
  lens = paths.view(scene.camera, world=world)
  seen_2 = lens.project(np.array([[character.start]]))[0, 0]
  return position_words(seen_2 / (world.height, world.width))


def position_words(share_2: np.ndarray) -> str:
  """Names the third of the frame at (y, x), shares of its height and width."""
  row, column = (3 * share_2).clip(0, 2).astype(int)
  if (row, column) == (1, 1):
    return 'in the middle'
  rows = ('at the top', '', 'at the bottom')
  columns = (' left', '', ' right')
  if row == 1:
    return f'on the{columns[column]}'
  return rows[row] + columns[column]


def _short(scene, rng, position) -> str:
  """'A red 3 moving left, the camera pans up'."""
  clauses = [
    f'{_article(c.colour)} {digit} {_motion(c, rng, form=0, adverb=False)}'
    for c, digit in _cast(scene, rng)
  ]
  return ', '.join(filter(None, [_join(clauses), _camera(scene, rng)]))


def _plain(scene, rng, position) -> str:
  """'A red three moves left while a blue seven stands still.'."""
  clauses = [
    f'{_article(c.colour)} {digit} {_motion(c, rng, form=1, adverb=False)}'
    for c, digit in _cast(scene, rng)
  ]
  joined = ' while '.join(clauses) if len(clauses) == 2 else _join(clauses)
  camera = _camera(scene, rng)
  return f'{joined}{", and " + camera if camera else ""}.'


def _medium(scene, rng, position) -> str:
  """'A small red 3 moves slowly left on a navy background.'."""
  clauses = [
    f'a {_pick(rng, SIZE_WORDS[c.size])} {c.colour} {digit} '
    f'{_motion(c, rng, form=1, adverb=True)}'
    for c, digit in _cast(scene, rng)
  ]
  over = _pick(rng, ('on', 'over', 'in front of'))
  text = f'{_join(clauses)} {over} {_background(scene, rng)}.'
  camera = _camera(scene, rng, still=0.2)
  return f'{text} {_sentence(camera)}' if camera else text


def _counted(scene, rng, position) -> str:
  """'Two digits: a red 3 moving left and a blue 7 standing still.'."""
  clauses = [
    f'{_article(c.colour)} {digit} {_motion(c, rng, form=0, adverb=True)}'
    for c, digit in _cast(scene, rng)
  ]
  number = len(clauses)
  count = COUNT_WORDS[number] if number < len(COUNT_WORDS) else str(number)
  noun = _pick(rng, ('digit', 'number')) + ('s' if number > 1 else '')
  text = f'{count} {noun}: {_join(clauses)}.'
  camera = _camera(scene, rng, still=0.2)
  return f'{text} {_sentence(camera)}' if camera else text


def _tags(scene, rng, position) -> str:
  """'red 3, moving left; navy background; the camera is still'."""
  parts = [
    f'{c.size} {c.colour} {digit}, {_motion(c, rng, form=0, adverb=True)}'
    for c, digit in _cast(scene, rng)
  ]
  parts.append(f'{_ground(scene)} background')
  parts.append(_camera(scene, rng, still=0.3))
  return '; '.join(filter(None, parts))


def _filmed(scene, rng, position) -> str:
  """'The camera pans left over a navy background with a red 3 moving up.'."""
  clauses = [
    f'{_article(c.colour)} {digit} {_motion(c, rng, form=0, adverb=False)}'
    for c, digit in _cast(scene, rng)
  ]
  camera = _camera(scene, rng, still=0.3)
  shot = f'{camera}: ' if camera else 'a video of '
  return f'{shot}{_join(clauses)}, {_background(scene, rng)}.'


def _elaborate(scene, rng, position) -> str:
  """'At the top left, a small red 3 moves slowly up. ... Navy background.'."""
  sentences = [
    f'{position(c)}, a {_pick(rng, SIZE_WORDS[c.size])} '
    f'{c.colour} {digit} {_motion(c, rng, form=1, adverb=True)}'
    for c, digit in _cast(scene, rng)
  ]
  sentences.append(
    f'{_pick(rng, ("behind is", "there is"))} {_background(scene, rng)}'
  )
  sentences.append(_camera(scene, rng, still=0.5))
  return ' '.join(_sentence(text) for text in sentences if text)


PHRASINGS: tuple[Callable, ...] = (
  _short,
  _plain,
  _medium,
  _counted,
  _tags,
  _filmed,
  _elaborate,
)
