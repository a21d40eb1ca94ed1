"""Best-of-n: of several samples, keeps the one with the smoothest motion.

The initial noise influences how motion continues across a join, so that some
samples join more smoothly than others; where nothing joins, motion throughout
the clip is compared. Samples are compared by optical flow
only; nothing here depends on the content of a video.

Source: a search over noise with a verifier, Ma et al. 2025, arXiv 2501.09732,
section 3 (random search).
"""

from collections.abc import Sequence

import numpy as np
import skimage  # its modules are imported when they are used

from spacetime.diffusion import conditioning_video

# Pixels of the shorter side at which motion is measured: fast motion of a large
# picture is slow enough there for the flow to follow.
SIDE = 64
# Standard deviation of the blur and radius of the flow's window, in pixels of
# that size: wide, so that shapes are compared by their positions.
BLUR, RADIUS = 5.0, 14
WARPS = 5  # iterations of the flow
POSITIONS = 16  # at most, at which motion is compared in a video without joins


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
  from scipy import ndimage  # here: a slow import

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
      skimage.registration.optical_flow_ilk(
        a, b, radius=RADIUS, num_warp=WARPS, gaussian=True
      )
      for a, b in zip(blurred_4HW, blurred_4HW[1:], strict=False)
    ]
  )
  change_2HW = np.hypot(*np.moveaxis(np.diff(flow_32HW, axis=0), 1, 0))
  return float(np.average(change_2HW.max(0), weights=contrast_HW) / SIDE)


def best(samples: Sequence[np.ndarray], joins: Sequence[int]) -> int:
  """Index of the best of several samples.

  With joins it is the one that joins most smoothly; without, the one whose
  motion is steadiest throughout; of clips too short for motion, the sharpest.

  Args:
    samples: frames_FHWC of each, of one length.
    joins: joins of the video; the sum of `roughness` over them is compared.
  """
  if len(samples) == 1:
    return 0
  frames = len(samples[0])
  if not joins and frames < 4:
    return int(np.argmax([sharpness(frames_FHWC) for frames_FHWC in samples]))
  positions = joins
  if not joins:
    positions = np.linspace(2, frames - 2, POSITIONS).round().astype(int)
  rough = [
    sum(roughness(frames_FHWC, i) for i in dict.fromkeys(positions))
    for frames_FHWC in samples
  ]
  return int(np.argmin(rough))


def sharpness(frames_FHWC: np.ndarray) -> float:
  """Mean magnitude of the gradient of the frames, of values 0 to 255."""
  grey_FHW = frames_FHWC.astype(np.float32).mean(-1)
  return float(np.hypot(*np.gradient(grey_FHW, axis=(1, 2))).mean())


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
  return skimage.transform.resize(
    grey_4HW, size, anti_aliasing=True, preserve_range=True
  )
