"""Camera motion of a clip of the digits world, from its background and sizes.

A camera moves a ramp along itself and magnifies it, and magnifies characters.
Where the background is plain, sizes alone tell a zoom, and nothing tells a pan.
"""

from collections.abc import Sequence

import numpy as np

from spacetime.data.digits import paths
from spacetime.data.digits import world as world_lib

# Standard deviations of the ramp's value in units of 255, of the logarithm of a
# character's size in one frame, and of the errors that all frames share.
GROUND = 0.8
SIZE = 0.05
# By how much another camera has to fit better than a still one, in units of
# squared standard deviations per frame.
STILL_BONUS = 0.05


def classify(ground_F3C: np.ndarray, edges: Sequence[np.ndarray], shape) -> str:
  """The camera whose view makes background and sizes most nearly constant.

  Args:
    ground_F3C: affine ramp of each frame, see segments.fit_ground.
    edges: edge_F of each character, in pixels.
    shape: frames, height and width of the clip.

  Returns:
    A name in world.CAMERAS; 'still' for an image.
  """
  frames, height, width = shape
  if frames == 1:
    return 'still'
  world = world_lib.World(frames=frames, height=height, width=width)
  half_2 = np.array([height, width]) / 2
  cost = {}
  for camera in world_lib.CAMERAS:
    lens = paths.view(camera, world=world)
    miss = _ground_error(ground_F3C, lens, half_2) / GROUND**2
    for edge_F in edges:
      size_F = np.log(np.maximum(edge_F, 1) / lens.zoom_F)
      miss += np.square(size_F - np.median(size_F)).mean() / SIZE**2
    cost[camera] = miss - STILL_BONUS * (camera == 'still')
  return min(cost, key=cost.get)


def _ground_error(ground_F3C, lens: paths.View, half_2) -> float:
  """Mean squared error of one ramp on the ground, seen by a camera.

  With the ground's ramp v = a + s.q, q = (p / zoom + shift / half), a frame's
  ramp has the value a + s.shift / half in the middle and the slopes s / zoom.
  """
  shift_F2 = lens.shift_F2 / half_2
  inverse_F = 1 / lens.zoom_F
  frames = len(inverse_F)
  rows_F33 = np.zeros((frames, 3, 3))
  rows_F33[:, 0, 0] = 1
  rows_F33[:, 0, 1:] = shift_F2
  rows_F33[:, 1, 1] = rows_F33[:, 2, 2] = inverse_F
  # A slope of 1 from edge to edge has a mean square of 1/3.
  weight_31 = np.sqrt([[1], [1 / 3], [1 / 3]])
  design = (rows_F33 * weight_31).reshape(-1, 3)
  value = (ground_F3C * weight_31).reshape(frames * 3, -1)
  ramp_3C = np.linalg.lstsq(design, value, rcond=None)[0]
  return float(np.square(value - design @ ramp_3C).sum() / frames)
