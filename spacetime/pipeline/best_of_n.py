"""Best-of-n: of several samples, keeps the one with the smoothest transition.

The initial noise influences how motion continues across a join, so that some
samples join more smoothly than others. Samples are compared by optical flow
only; nothing here depends on the content of a video.

Source: a search over noise with a verifier, Ma et al. 2025, arXiv 2501.09732,
section 3 (random search).
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage import registration, transform

from spacetime.diffusion import conditioning_video

# Pixels of the shorter side at which motion is measured: fast motion of a large
# picture is slow enough there for the flow to follow.
SIDE = 64
# Standard deviation of the blur and radius of the flow's window, in pixels of
# that size: wide, so that shapes are compared by their positions.
BLUR, RADIUS = 5.0, 14
WARPS = 5  # iterations of the flow


def joins(video: conditioning_video.ConditioningVideo) -> tuple[int, ...]:
  """Joins of generated frames with conditioning frames.

  Returns:
    The first frame after each join; 0 for a loop. Joins with fewer than two
    frames on a side are left out, since they have no motion to compare.
  """
  known_F = np.ones(video.length, bool)
  first, stop = video.output_range
  clip = slice(len(video.before_FHWC), video.length - len(video.after_FHWC))
  known_F[clip] = video.cond_mask_FHW[first:stop].all((1, 2))
  joins = np.flatnonzero(known_F != np.roll(known_F, 1)).tolist()
  return tuple(
    join
    for join in joins
    if 2 <= join <= video.length - 2 or (video.loops and join == 0)
  )


def roughness(frames_FHWC: np.ndarray, join: int) -> float:
  """Change of motion where two parts of a video meet.

  Args:
    frames_FHWC: uint8, four frames or more.
    join: first frame after the join; 0 is the join of a loop's end to its
      start.

  Returns:
    The larger of the changes of optical flow before and after the join, as a
    mean over the picture weighted by squared contrast, in units of the shorter
    side per frame; 0 for frames without contrast.
  """
  near = np.arange(join - 2, join + 2) % len(frames_FHWC)
  grey_4HW = _grey(frames_FHWC[near].astype(np.float32) / 255)
  blurred_4HW = ndimage.gaussian_filter(
    grey_4HW, (0, BLUR, BLUR), mode='nearest'
  )
  contrast_HW = ndimage.gaussian_filter(
    sum(np.square(g) for g in np.gradient(blurred_4HW.mean(0))), RADIUS / 2
  )
  if not contrast_HW.max() > 0:
    return 0.0
  flow_32HW = np.stack(
    [
      registration.optical_flow_ilk(
        a, b, radius=RADIUS, num_warp=WARPS, gaussian=True
      )
      for a, b in zip(blurred_4HW, blurred_4HW[1:], strict=False)
    ]
  )
  change_2HW = np.hypot(*np.moveaxis(np.diff(flow_32HW, axis=0), 1, 0))
  return float(np.average(change_2HW.max(0), weights=contrast_HW) / SIDE)


def smoothest(
  samples: Sequence[np.ndarray], joins: Sequence[int], *, candidates: int
) -> tuple[list[np.ndarray], list[int]]:
  """Selects the smoothest candidate of each clip.

  Args:
    samples: frames_FHWC; the candidates of a clip are adjacent.
    joins: joins of each video; the sum of `roughness` over them is compared.
    candidates: number of candidates of each clip.

  Returns:
    (videos, index of each among the candidates of its clip).
  """
  if candidates == 1:
    return list(samples), [0] * len(samples)
  rough = [sum(roughness(video, join) for join in joins) for video in samples]
  best = np.argmin(np.reshape(rough, (-1, candidates)), axis=1)
  chosen = [samples[i * candidates + k] for i, k in enumerate(best)]
  return chosen, best.tolist()


def _grey(frames_4HWC: np.ndarray) -> np.ndarray:
  """Projects colours on their first principal axis, resized to SIDE.

  Unlike luminance, this separates colours of equal brightness.
  """
  pixels_PC = frames_4HWC.reshape(-1, frames_4HWC.shape[-1])
  mean_C = pixels_PC.mean(0)
  _, axes_CC = np.linalg.eigh(np.cov(pixels_PC.T))
  grey_4HW = (frames_4HWC - mean_C) @ axes_CC[:, -1]
  frames, height, width = grey_4HW.shape
  scale = SIDE / min(height, width)
  size = frames, round(height * scale), round(width * scale)
  return transform.resize(
    grey_4HW, size, anti_aliasing=True, preserve_range=True
  )
