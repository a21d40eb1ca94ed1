"""Expansion of prompts of the digits world."""

import dataclasses

import numpy as np
import pytest

from spacetime.data.digits import captions, expansion, scenes
from spacetime.data.digits import world as world_lib
from tests.helpers import digits_cases

WORLD = world_lib.World()


@pytest.mark.parametrize('phrasing', captions.PHRASINGS)
def test_all_that_a_caption_tells_stays(phrasing):
  """Whatever the phrasing, each digit keeps its colour and motion, and the
  background and a moving camera stay."""
  rng = np.random.default_rng(0)
  for _ in range(80):
    scene = scenes.sample_scene(rng, world=WORLD, split='train')
    text = phrasing(scene, rng, lambda character: 'in the middle')
    caption = expansion.expand(text, world=WORLD)
    for character in scene.characters:
      assert captions.named(caption, character), (text, caption)
    if scene.camera != 'still':
      phrase = captions.CAMERA_PHRASES[scene.camera][0]
      assert phrase in caption.lower(), (text, caption)
    if scene.background.first in text:
      assert scene.background.first in caption, (text, caption)
    assert len(caption.split()) <= 60


@pytest.mark.parametrize(
  'text, parts',
  [
    ('a red 3', ['red 3 ', ' on a', ' background. The camera is still.']),
    ('a tiny seven bounces fast', [' small ', ' 7 bounces']),
    ('blue eight goes to the left', ['blue 8 moves ', ' left on']),
    ('4 up and right', ['4 moves ', ' diagonally up and right']),
    ('two digits: red 1, green 2', ['red 1 ', ' and a ', 'green 2 ']),
    ('five over olive', [' 5 ', ' on an olive background']),
  ],
)
def test_what_is_left_open_is_filled_in(text, parts):
  caption = expansion.expand(text, world=WORLD)
  assert all(part in caption for part in parts), caption
  assert caption == expansion.expand(text, world=WORLD)


def test_what_is_drawn_is_of_the_world_and_differs_in_colour():
  world = dataclasses.replace(
    WORLD,
    max_characters=2,
    sizes=('large',),
    speeds=('fast',),
    colours=('red', 'blue'),
  )
  for seed in range(20):
    caption = expansion.expand(f'1, 2 and more, {seed + 10}', world=world)
    assert caption.count('large') == 2 and 'small' not in caption
    assert 'slowly' not in caption and 'red' in caption and 'blue' in caption


def test_what_names_no_digit_stays_as_it_is():
  for text in ('a cat', 'two digits', '12 cats on navy'):
    assert expansion.expand(text, world=WORLD) == text


def test_a_canonical_caption_only_gains():
  scene = digits_cases.SCENE
  text = captions.canonical_caption(scene)
  assert text == (
    'A small red 3 moves diagonally up and left on a navy and plum background. '
    'The camera pans left.'
  )
  caption = expansion.expand(text, world=WORLD)
  assert caption.replace(' slowly', '').replace(' quickly', '') == text
