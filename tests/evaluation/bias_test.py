"""Bias: a group that is served worse is found, and rarely one that is not."""

import numpy as np
import pytest

from spacetime.evaluation import bias


def draw(n, *, shortfall=0.0, seed=0):
  """Groups by ten digits, scores of which digit 3 falls short."""
  random = np.random.default_rng(seed)
  digit = random.integers(0, 10, n)
  groups = {f'digit={i}': digit == i for i in range(10)}
  right = random.random(n) < 0.8 - shortfall * (digit == 3)
  return groups, {'right': right, 'other': random.random(n) < 0.5}


def test_compare_finds_the_group_that_is_served_worse():
  groups, scores = draw(300, shortfall=0.6)
  first, *others = bias.compare(groups, scores)
  assert (first.group, first.score) == ('digit=3', 'right')
  assert first.count == groups['digit=3'].sum()
  assert first.mean == pytest.approx(scores['right'][groups['digit=3']].mean())
  assert first.others == pytest.approx(
    scores['right'][~groups['digit=3']].mean()
  )
  assert first.p < 0.001 and first.others - first.mean > first.detectable
  assert all(c.p > bias.LEVEL for c in others)
  assert 'digit=3, right: 0.' in bias.summary([first, *others])


def test_compare_rarely_finds_what_is_not_there(monkeypatch):
  monkeypatch.setattr(bias, 'PERMUTATIONS', 500)
  alarms = sum(
    bias.compare(*draw(120, seed=seed), seed=seed)[0].p < bias.LEVEL
    for seed in range(50)
  )
  assert alarms <= 7  # 2.5 on the average; uncorrected, about 30


def test_samples_of_one_clip_are_no_independent_evidence():
  # One failed clip of eight equal samples is one failure, not eight.
  clips = np.arange(20).repeat(8)
  right = (clips != 7).astype(float)
  groups = {'a': np.isin(clips, (7, 8)), 'b': clips > 9}
  independent = bias.compare(groups, {'right': right})
  clustered = bias.compare(groups, {'right': right}, clips=clips)
  assert independent[0].p < 0.001
  assert clustered[0].p == pytest.approx(0.1, abs=0.02)  # 2 of 20 clips


def test_compare_without_anything_to_compare():
  assert bias.compare({'all': [True] * 3}, {'right': [1, 0, 1]}) == []
  assert bias.summary([]) == 'No group is served worse beyond chance.'
  equal = bias.compare({'a': [True, False, True]}, {'right': [1, 1, 1]})
  assert equal[0].p == 1.0
  with pytest.raises(ValueError, match='3 scores, but'):
    bias.compare({'a': [True]}, {'right': [1, 0, 1]})
