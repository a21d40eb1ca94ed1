"""Distances between two sets of clips, by their features.

Both are 0 for sets of one distribution. The Fréchet distance is biased upwards
in small sets, so it is compared at equal numbers of clips only; the maximum
mean discrepancy has no bias and may be slightly negative.
"""

import numpy as np
from scipy import linalg


def between(clips_ND: np.ndarray, real_ND: np.ndarray) -> dict[str, float]:
  """The distances of clips from real ones, in units of the latter's spread.

  Args:
    clips_ND: features of clips, more than one.
    real_ND: features of as many real clips.

  Returns:
    frechet, and mmd, the squared maximum mean discrepancy.
  """
  clips_ND = standardized(clips_ND, real_ND)
  real_ND = standardized(real_ND, real_ND)
  return {
    'frechet': round(frechet(clips_ND, real_ND), 4),
    'mmd': round(squared_mmd(clips_ND, real_ND), 5),
  }


def frechet(x_ND: np.ndarray, y_MD: np.ndarray) -> float:
  """The Fréchet distance of two normal distributions fitted to features.

  |mean - mean'|^2 + tr(C + C' - 2 (C C')^(1/2)).

  Args:
    x_ND: features of N clips, more than one.
    y_MD: features of M clips, more than one.

  Source: M. Heusel et al., GANs trained by a two time-scale update rule
    (2017), arXiv 1706.08500.
  """
  difference_D = x_ND.mean(0) - y_MD.mean(0)
  cov_DD, other_DD = (np.cov(z, rowvar=False) for z in (x_ND, y_MD))
  # The eigenvalues of C C' are those of a positive semidefinite matrix.
  values_D = linalg.eigvals(cov_DD @ other_DD).real
  root = np.sqrt(np.maximum(values_D, 0)).sum()
  trace = np.trace(cov_DD) + np.trace(other_DD) - 2 * root
  return float(difference_D @ difference_D + trace)


def squared_mmd(x_ND: np.ndarray, y_MD: np.ndarray) -> float:
  """The unbiased squared maximum mean discrepancy of two sets of features.

  With the kernel (x.y / D + 1)^3.

  Args:
    x_ND: features of N clips, more than one.
    y_MD: features of M clips, more than one.

  Source: M. Bińkowski et al., Demystifying MMD GANs (2018), arXiv 1801.01401.
  """
  x_ND, y_MD = np.asarray(x_ND, np.float64), np.asarray(y_MD, np.float64)

  def kernel(a, b):
    return (a @ b.T / a.shape[1] + 1) ** 3

  def within(a):
    k_NN = kernel(a, a)
    return (k_NN.sum() - np.trace(k_NN)) / (len(a) * (len(a) - 1))

  between = kernel(x_ND, y_MD).mean()
  return float(within(x_ND) + within(y_MD) - 2 * between)


def standardized(x_ND: np.ndarray, reference_ND: np.ndarray) -> np.ndarray:
  """Features in units of a reference's mean and deviation, per feature.

  Args:
    x_ND: features.
    reference_ND: those of real clips, that set the scale.
  """
  deviation_D = np.maximum(reference_ND.std(0), 1e-6)
  return (x_ND - reference_ND.mean(0)) / deviation_D
