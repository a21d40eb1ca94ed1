"""Captions that are wrong in one word."""

import dataclasses

import numpy as np
import pytest

from spacetime.data.digits import captions, scenes, world, wrong_captions


def drawn(count, characters=3):
  rng = np.random.default_rng(0)
  everything = world.World(max_characters=characters)
  return [
    scenes.sample_scene(rng, world=everything, split='train')
    for _ in range(count)
  ]


@pytest.mark.parametrize('kind', wrong_captions.KINDS)
def test_one_thing_is_changed(kind):
  rng, changes = np.random.default_rng(1), 0
  for scene in drawn(40):
    wrong = wrong_captions.changed(scene, kind, rng)
    if wrong is None:
      assert kind == 'swap'
      digits = [c.digit for c in scene.characters[:2]]
      assert len(set(digits)) == 1
      continue
    changes += 1
    before, after = scene.characters, wrong.characters
    assert wrong.background == scene.background and len(before) == len(after)
    if kind == 'camera':
      assert wrong.camera != scene.camera and before == after
    elif kind == 'swap':
      assert [c.digit for c in after[:2]] == [c.digit for c in before[1::-1]]
      assert before[2:] == after[2:]
    else:
      assert getattr(after[0], kind) != getattr(before[0], kind)
      restored = dataclasses.replace(
        after[0], **{kind: getattr(before[0], kind)}
      )
      assert restored == before[0] and before[1:] == after[1:]
      assert getattr(after[0], kind) not in {
        getattr(c, kind) for c in before[1:]
      }
    assert captions.canonical_caption(wrong) != captions.canonical_caption(
      scene
    )
  assert changes > 10


def test_one_character_has_nothing_to_swap():
  scene = drawn(1, characters=1)[0]
  rng = np.random.default_rng(0)
  assert wrong_captions.changed(scene, 'swap', rng) is None
  with pytest.raises(ValueError, match="kind='size': expected one of"):
    wrong_captions.changed(scene, 'size', rng)
