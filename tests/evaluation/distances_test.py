import functools

import numpy as np
import pytest
from scipy import ndimage

from spacetime.data.digits import examples
from spacetime.data.digits import world as world_lib
from spacetime.evaluation import distances, features, i3d
from tests.helpers import digits_cases

CLIPS = 64


def test_frechet_of_normal_sets_is_the_closed_form():
  rng = np.random.default_rng(0)
  x = rng.normal(0, 1, (40_000, 3))
  y = rng.normal(0, 1, (40_000, 3)) * [1, 2, 1] + [0, 0, 3]
  # |mean|^2 = 9, and (1 - 2)^2 for the deviation.
  assert distances.frechet(x, y) == pytest.approx(10, rel=0.02)
  assert distances.frechet(x, x) == pytest.approx(0, abs=1e-6)


def test_mmd_has_no_bias_and_sees_a_shift():
  rng = np.random.default_rng(0)

  def value(shift):
    sets = rng.normal(0, 1, (2, 20, 4))
    return distances.squared_mmd(sets[0], sets[1] + shift)

  same = np.array([value(0) for _ in range(400)])
  assert abs(same.mean()) < 3 * same.std() / 20
  assert np.mean([value(0.5) for _ in range(50)]) > same.mean() + same.std()


@functools.cache
def clips(seed: int) -> list[np.ndarray]:
  world = world_lib.World()
  return [
    examples.example(i, world=world, split='validation', seed=seed)['video']
    for i in range(CLIPS)
  ]


def blurred(clip, strength):
  soft = ndimage.gaussian_filter(clip.astype(float), (0, *2 * [strength], 0))
  return soft.astype(np.uint8)


def noisy(clip, strength):
  noise = np.random.default_rng(0).normal(0, strength, clip.shape)
  return (clip + noise).clip(0, 255).astype(np.uint8)


def frozen(clip, first):
  return clip[np.minimum(np.arange(len(clip)), first)]


def shuffled(clip, share):
  order = np.arange(len(clip))
  rng = np.random.default_rng(0)
  some = rng.permutation(len(clip))[: int(share * len(clip))]
  order[np.sort(some)] = some
  return clip[order]


@pytest.mark.slow
@pytest.mark.parametrize(
  'change, strengths',
  [
    (blurred, (0.7, 1.5, 3)),
    (noisy, (10, 30, 90)),
    (frozen, (8, 4, 0)),
    (shuffled, (0.4, 1)),
  ],
)
def test_distances_grow_with_damage(change, strengths):
  real_ND = features.extract(clips(3))
  levels = [clips(4)]
  levels += [[change(clip, s) for clip in clips(4)] for s in strengths]
  values = [
    distances.between(features.extract(level), real_ND) for level in levels
  ]
  for name in ('frechet', 'mmd'):
    rising = [value[name] for value in values]
    assert rising == sorted(rising), (name, rising)


def test_clips_played_backwards_are_seen():
  # The motions of the world are nearly symmetric in time, so that sets of clips
  # differ little; the features of each clip do.
  forwards = features.extract(clips(3))
  backwards = features.extract([clip[::-1] for clip in clips(3)])
  assert np.abs(forwards - backwards).mean() > 0.1 * forwards.std()


def test_features_do_not_depend_on_the_batch():
  five = features.extract(clips(3)[:5], batch_size=2)
  one = features.extract(clips(3)[:5], batch_size=5)
  np.testing.assert_allclose(five, one, atol=1e-4)


def test_labels_name_what_a_scene_shows():
  shown_K, camera = features.labels(digits_cases.SCENE)
  names = [name for kind in features.KINDS.values() for name in kind]
  shown = {
    name for name, is_shown in zip(names, shown_K, strict=True) if is_shown
  }
  assert shown == {3, 'red', 'up-left', 'small'}
  assert world_lib.CAMERAS[camera] == 'pan left'


@pytest.mark.slow
def test_i3d_tells_clips_apart_and_refuses_short_ones():
  with pytest.raises(ValueError, match='frames=8: expected 9 or more'):
    i3d.check(8)
  short = [clip[:9] for clip in clips(3)[:2]]
  logits = i3d.extract(short, batch_size=2)
  assert logits.shape == (2, 400) and np.isfinite(logits).all()
  other = i3d.extract([noisy(clip, 60) for clip in short], batch_size=2)
  between = np.abs(logits[0] - logits[1]).mean()
  assert np.abs(logits - other).mean() > 0.2 * between > 0
