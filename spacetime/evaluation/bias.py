"""Bias: whether some groups of prompts are served worse than all others.

Each group is compared with all samples outside it. P-values are corrected for
the number of comparisons by permutation: scores are exchanged between clips,
and the largest difference of all comparisons is what chance reaches.

Source: P. Westfall and S. Young, Resampling-based multiple testing (1993), the
single-step max-T procedure.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

LEVEL = 0.05  # of the corrected p-values that are reported
PERMUTATIONS = 10_000
_AT_ONCE = 500


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One group and score against all samples outside the group.

  Attributes:
    group: name of the group, such as 'digit=3'.
    score: name of the score.
    count: number of samples in the group.
    mean: mean score of the group.
    others: mean score of all other samples.
    p: corrected probability of such a shortfall by chance.
    detectable: least shortfall that would be significant in this group.
  """

  group: str
  score: str
  count: int
  mean: float
  others: float
  p: float
  detectable: float


def compare(
  groups: Mapping[str, Sequence[bool]],
  scores: Mapping[str, Sequence[float]],
  *,
  clips: Sequence[int] | None = None,
  seed: int = 0,
) -> list[Comparison]:
  """Compares groups of samples of any model, by scores of any kind.

  Args:
    groups: which of the N samples belong to each group; groups may overlap.
    scores: a number of each sample, the higher the better.
    clips: clip of each sample, of those that share one; samples of one clip are
      exchanged together, with those of a clip of as many. None: all differ.
    seed: of the permutations.

  Returns:
    All comparisons of groups that neither contain all samples nor none, the
    most significant first.

  Raises:
    ValueError: sequences of different lengths.
  """
  score_NS = np.array(list(scores.values()), np.float64).T
  n = len(score_NS)
  clips = np.arange(n) if clips is None else np.asarray(clips)
  lengths = {len(clips), *(len(member) for member in groups.values())}
  if lengths != {n}:
    raise ValueError(f'{n} scores, but {sorted(lengths)} samples')
  groups = {k: v for k, v in groups.items() if 0 < np.sum(v) < n}
  if not groups:
    return []
  member_GN = np.array(list(groups.values()), np.float64)
  count_G = member_GN.sum(1)
  weight_GN = _difference_weights(member_GN)
  spread_S = np.maximum(score_NS.std(0), 1e-9)
  scale_GS = spread_S * np.sqrt(1 / count_G + 1 / (n - count_G))[:, None]
  shortfall_GS = -weight_GN @ score_NS
  observed_GS = shortfall_GS / scale_GS
  largest = _largest_by_chance(weight_GN, score_NS, scale_GS, clips, seed)
  critical = np.quantile(largest, 1 - LEVEL)
  # The permutation that changes nothing counts as one.
  p_GS = (1 + (largest >= observed_GS[..., None] - 1e-9).sum(-1)) / (
    1 + len(largest)
  )
  mean_GS = member_GN @ score_NS / count_G[:, None]
  comparisons = [
    Comparison(
      group,
      score,
      count=int(count_G[g]),
      mean=float(mean_GS[g, s]),
      others=float(mean_GS[g, s] + shortfall_GS[g, s]),
      p=float(p_GS[g, s]),
      detectable=float(critical * scale_GS[g, s]),
    )
    for g, group in enumerate(groups)
    for s, score in enumerate(scores)
  ]
  return sorted(comparisons, key=lambda comparison: comparison.p)


def _difference_weights(member_GN: np.ndarray) -> np.ndarray:
  """Weights of the samples in the difference between a group's mean and the
  mean of all others, one row for each group."""
  count_G1 = member_GN.sum(1, keepdims=True)
  others_G1 = member_GN.shape[1] - count_G1
  return member_GN / count_G1 - (1 - member_GN) / others_G1


def _largest_by_chance(weight_GN, score_NS, scale_GS, clips, seed):
  """The largest standardised shortfall in each permutation."""
  order = np.argsort(clips, kind='stable')
  _, first, size = np.unique(
    clips[order], return_index=True, return_counts=True
  )
  # Samples (clips, size) of the clips of each size.
  blocks = [
    order[first[size == k][:, None] + np.arange(k)] for k in np.unique(size)
  ]
  random = np.random.default_rng(seed)
  source = np.concatenate([block.ravel() for block in blocks])
  largest = []
  for _ in range(PERMUTATIONS // _AT_ONCE):
    index_BN = np.empty((_AT_ONCE, len(clips)), int)
    for row in index_BN:
      row[source] = np.concatenate(
        [random.permutation(block).ravel() for block in blocks]
      )
    shortfall_BGS = -np.einsum('gn,bns->bgs', weight_GN, score_NS[index_BN])
    largest.append((shortfall_BGS / scale_GS).max((1, 2)))
  return np.concatenate(largest)


def summary(comparisons: Sequence[Comparison]) -> str:
  """The significant comparisons as text, or that there are none."""
  worse = [c for c in comparisons if c.p < LEVEL]
  if not worse:
    least = f', the least p is {comparisons[0].p:.3f}' if comparisons else ''
    return f'No group is served worse beyond chance{least}.'
  lines = [f'Served worse than all others (corrected p < {LEVEL}):']
  lines += [
    f'  {c.group}, {c.score}: {c.mean:.3f} of {c.count}, others '
    f'{c.others:.3f}, p {c.p:.4f}'
    for c in worse
  ]
  return '\n'.join(lines)
