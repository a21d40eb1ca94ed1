import dataclasses
import itertools

import numpy as np
import pytest

from spacetime.data.digits import captions, scenes, world
from tests.helpers.digits_cases import CHARACTER, SCENE

WORLD = world.World()


def _scenes(number, split='train'):
  rng = np.random.default_rng(5)
  return [
    scenes.sample_scene(rng, world=WORLD, split=split) for _ in range(number)
  ]


@pytest.mark.parametrize('phrasing', captions.PHRASINGS)
def test_every_phrasing_names_what_the_scene_holds(phrasing):
  rng = np.random.default_rng(0)
  for scene in _scenes(120):
    text = phrasing(scene, rng, lambda character: 'in the middle')
    for character in scene.characters:
      assert captions.named(text, character), (text, character)
    if scene.camera != 'still':
      phrases = captions.CAMERA_PHRASES[scene.camera]
      assert any(phrase in text.lower() for phrase in phrases), text
    assert len(text.split()) <= 60
    assert '@' not in text and '  ' not in text


def test_no_motion_or_camera_reads_as_another():
  for table in (captions.MOTION_PHRASES, captions.CAMERA_PHRASES):
    flat = {
      name: np.ravel(np.array(phrases)).tolist()
      for name, phrases in table.items()
    }
    for a, b in itertools.permutations(flat, 2):
      for x, y in itertools.product(flat[a], flat[b]):
        assert x.replace('@', '') not in y.replace('@', '')
  motions = {*world.MOTIONS, world.WANDERING}
  assert set(captions.MOTION_PHRASES) == motions
  assert set(captions.CAMERA_PHRASES) == set(world.CAMERAS)


@pytest.mark.parametrize(
  'change', [{'digit': 4}, {'colour': 'blue'}, {'motion': 'up'}]
)
def test_named_sees_a_wrong_caption(change):
  text = captions.canonical_caption(SCENE)
  assert captions.named(text, CHARACTER)
  assert not captions.named(text, dataclasses.replace(CHARACTER, **change))


def test_captions_vary_and_repeat_with_the_generator():
  def draw(seed):
    rng = np.random.default_rng(seed)
    return [captions.caption(SCENE, rng, world=WORLD) for _ in range(60)]

  assert draw(0) == draw(0)
  assert len(set(draw(0))) > 30
  lengths = [len(text.split()) for text in draw(0)]
  assert min(lengths) <= 12 and max(lengths) >= 18
  assert any(' 3 ' in text for text in draw(0))
  assert any(' three ' in text for text in draw(0))


def test_canonical_caption():
  assert captions.canonical_caption(SCENE) == (
    'A small red 3 moves diagonally up and left on a navy and plum '
    'background. The camera pans left.'
  )
  for scene in _scenes(60, 'compositions'):
    text = captions.canonical_caption(scene)
    assert all(captions.named(text, c) for c in scene.characters)


def test_articles():
  orange = dataclasses.replace(CHARACTER, colour='orange')
  scene = dataclasses.replace(
    SCENE,
    characters=(orange,),
    background=world.Background('plain', 'olive', 'olive'),
  )
  rng = np.random.default_rng(0)
  for _ in range(100):
    text = captions.caption(scene, rng, world=WORLD).lower()
    assert ' a o' not in f' {text}' and ' an s' not in f' {text}'


@pytest.mark.parametrize(
  'start, where',
  [((10, 10), 'At the top left'), ((32, 50), 'On the right')],
)
def test_position_in_the_frame(start, where):
  character = dataclasses.replace(CHARACTER, start=start)
  scene = dataclasses.replace(SCENE, characters=(character,))
  text = captions._position(character, scene, WORLD)
  assert text == where.lower()
