"""Weights of the steps of UniPC and DPM++, computed once on the host."""

from collections.abc import Sequence

import numpy as np

from spacetime.diffusion.schedules import MARGIN


def weights(sigmas: Sequence[float]) -> np.ndarray:
  """Weights of the steps of UniPC and DPM++, float64 (4, K).

  With x the predicted sample at the start of a step, x_before the one before
  it and x_after the one at its end, z becomes

    z + advance (x - z) + extrapolate (x - x_before)           as predicted,
    z + advance (x - z) + backward (x_before - x)
      + forward (x_after - x)                                  as corrected.

  `advance` is (1 - s) (1 - e^-h) of the papers, s the level at the end: 1 - s
  / t, which is finite where the step h in the log-ratio of signal to noise is
  not.
  """
  t = np.asarray(sigmas, np.float32).astype(np.float64)
  steps = len(t) - 1
  advance = 1 - t[1:] / t[:-1]
  extrapolate, backward, forward = np.zeros((3, steps))
  forward[0] = 0.5 * advance[0]
  t[0] = min(t[0], np.float32(1 - MARGIN))
  ratio = np.log1p(-t[:-1]) - np.log(t[:-1])
  for i in range(1, steps - 1):
    h = ratio[i + 1] - ratio[i]
    r = (ratio[i - 1] - ratio[i]) / h
    extrapolate[i] = -0.5 * advance[i] / r
    b_h = np.expm1(-h)
    phi_1 = b_h / -h - 1
    phi_2 = phi_1 / -h - 0.5
    backward[i], forward[i] = advance[i] * np.linalg.solve(
      [[1.0, 1.0], [r, 1.0]], [phi_1 / b_h, 2 * phi_2 / b_h]
    )
    backward[i] /= r
  return np.stack([advance, extrapolate, backward, forward])
