"""Framings: a window shows what the scene shows there, and its caption."""

import dataclasses

import numpy as np
import pytest

from spacetime.data.digits import captions, framing, render, world

EASY = world.World(frames=9, height=48, width=64, max_characters=1)


def box_of(window, scene, tree):
  """Low and high edges of all ink in the window, over its frames."""
  shown = window.crop(tree)
  rows = [c.glyph for c in scene.characters]
  half = (
    shown['size_FP'][:, : len(rows), None] * (framing.glyphs.extents()[rows])
  )
  centre = shown['centre_FP2'][:, : len(rows)]
  return (centre - half).min((0, 1)), (centre + half).max((0, 1))


def test_a_window_shows_the_scene_there():
  rng = np.random.default_rng(0)
  everything = dataclasses.replace(EASY, max_characters=3)
  for _ in range(4):
    scene = framing.scenes.sample_scene(rng, world=everything, split='train')
    tree = render.drawing(scene, everything)
    full = render.clip(scene, everything)
    window = framing.Window(2, 5, (11.0, 23.0), 24, 32)
    np.testing.assert_allclose(
      window.render(tree).astype(int), full[2:7, 11:35, 23:55], atol=1
    )


@pytest.mark.parametrize('characters', [1, 2])
@pytest.mark.parametrize('frames, spread', [(1, 0.0), (1, 1.0), (5, 0.5)])
def test_every_character_is_fully_inside_the_window(frames, spread, characters):
  rng, seen = np.random.default_rng(1), []
  shown = dataclasses.replace(EASY, max_characters=characters)
  for _ in range(20):
    scene, window, tree = framing.draw(
      rng,
      world=shown,
      split='train',
      frames=frames,
      height=40,
      width=56,
      spread=spread,
    )
    low, high = box_of(window, scene, tree)
    assert (low >= -0.02).all() and (high <= np.array([40.02, 56.02])).all()
    seen.append((low + high) / 2 - (20, 28))
    assert len(tree['ramp_F3']) == (1 if frames == 1 else 9)
  away = np.abs(seen).max()
  assert away <= framing.JITTER + 0.01 if spread == 0 else away > 4


def test_a_scene_that_does_not_fit_is_reduced_to_one_character(monkeypatch):
  # As a rule another attempt finds a scene of one character.
  monkeypatch.setattr(framing, 'ATTEMPTS', 1)
  rng = np.random.default_rng(4)
  crowd = dataclasses.replace(EASY, max_characters=3)
  for _ in range(10):
    scene, window, tree = framing.draw(
      rng,
      world=crowd,
      split='train',
      frames=1,
      height=20,
      width=20,
      spread=1.0,
    )
    low, high = box_of(window, scene, tree)
    assert (low >= -0.02).all() and (high <= 20.02).all()


def test_a_window_around_one_shows_either_of_two():
  rng, middles = np.random.default_rng(5), []
  pairs = dataclasses.replace(EASY, min_characters=2, max_characters=2)
  for _ in range(40):
    scene, window, tree = framing.draw(
      rng,
      world=pairs,
      split='train',
      frames=1,
      height=24,
      width=24,
      spread=0.0,
      one=True,
    )
    shown = [
      np.abs(window.crop(tree)['centre_FP2'][0, n] - 12).max() < 3
      for n in range(len(scene.characters))
    ]
    if len(shown) == 2:  # a few scenes have room for one only
      middles.append(shown.index(True))
      character = dataclasses.replace(
        scene, characters=(scene.characters[middles[-1]],)
      )
      alone = render.drawing(character, pairs)
      alone = {**alone, 'centre_FP2': tree['centre_FP2'][:, middles[-1:]]}
      low, high = box_of(window, character, alone)
      assert (low >= -0.02).all() and (high <= 24.02).all()
  assert len(middles) > 30 and set(middles) == {0, 1}


def test_a_window_near_a_character_lies_in_the_frame():
  rng = np.random.default_rng(2)
  for _ in range(20):
    _, window, _ = framing.draw_near(
      rng, world=EASY, split='train', frames=5, height=32, width=24
    )
    corner = np.array(window.corner_2)
    assert (corner >= 0).all() and (corner <= (16, 40)).all()
    assert 0 <= window.first <= 4


def test_the_caption_says_the_position_in_the_window():
  rng, places = np.random.default_rng(3), set()
  for _ in range(200):
    record = framing.example(
      rng,
      world=EASY,
      split='train',
      framing='window',
      frames=1,
      height=32,
      width=32,
      spread=0.0,
    )
    for words in ('in the middle', 'at the', 'on the left,', 'on the right,'):
      if words in record['caption'].lower().split(' a ')[0]:
        places.add(words)
  # The background's sides are named too, but never before the character.
  assert places == {'in the middle'}


def test_words_of_positions():
  assert captions.position_words(np.array([0.5, 0.5])) == 'in the middle'
  assert captions.position_words(np.array([0.1, 0.9])) == 'at the top right'
  assert captions.position_words(np.array([0.5, -0.1])) == 'on the left'
  assert captions.position_words(np.array([1.2, 0.5])) == 'at the bottom'


def test_refuses_a_window_longer_than_the_scene():
  with pytest.raises(ValueError, match='frames=10: expected at most 9'):
    framing.draw(
      np.random.default_rng(0),
      world=EASY,
      split='train',
      frames=10,
      height=32,
      width=32,
      spread=0.0,
    )
