"""Scenes with one thing changed: captions that are wrong in one word.

A model that has learnt what a word means predicts a held-out clip worse when
that word of its caption is wrong; see training/caption_probe.py.
"""

import dataclasses

import numpy as np

from spacetime.data.digits import world as world_lib

KINDS = ('digit', 'colour', 'motion', 'camera', 'swap')


def changed(
  scene: world_lib.Scene, kind: str, rng: np.random.Generator
) -> world_lib.Scene | None:
  """The scene with one thing changed; None where it does not have it.

  Args:
    scene: of any number of characters.
    kind: of KINDS. 'digit', 'colour' and 'motion' change the first character;
      'camera' the camera; 'swap' exchanges the digits of the first two
      characters, which have to differ.
    rng: the only source of chance.

  Raises:
    ValueError: an unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(f'kind={kind!r}: expected one of {KINDS}')
  if kind == 'camera':
    others = [c for c in world_lib.CAMERAS if c != scene.camera]
    return dataclasses.replace(scene, camera=_pick(rng, others))
  first, *rest = scene.characters
  if kind == 'swap':
    if not rest or rest[0].digit == first.digit:
      return None
    second = dataclasses.replace(rest[0], digit=first.digit)
    first = dataclasses.replace(first, digit=rest[0].digit)
    return dataclasses.replace(scene, characters=(first, second, *rest[1:]))
  options = {
    'digit': range(10),
    'colour': world_lib.COLOURS,
    'motion': world_lib.MOTIONS,
  }[kind]
  # A colour of another character would swap two things.
  taken = {getattr(c, kind) for c in scene.characters}
  others = [value for value in options if value not in taken]
  first = dataclasses.replace(first, **{kind: _pick(rng, others)})
  return dataclasses.replace(scene, characters=(first, *rest))


def _pick(rng, options):
  return options[rng.integers(len(options))]
