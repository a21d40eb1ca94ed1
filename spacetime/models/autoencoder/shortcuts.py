"""Shortcuts of the 2.2 autoencoder: resampling without parameters.

Source: Chen et al., 2024, arXiv:2410.10733 (DC-AE), section 3.2.
"""

import einops
import jax.numpy as jnp


def average_down(x_BFHWC, *, features: int, time: int, space: int, opens: bool):
  """Folds pixels into channels and averages groups of them: no parameters.

  Args:
    x_BFHWC: a chunk; one that opens the video gets time - 1 zero frames first.
    features: channels out; divides channels * time * space**2, or (a level
      that widens without folding) is divided by it: then channels repeat.
    time: frames to fold.
    space: rows and columns to fold.
    opens: whether the chunk holds frame 0.
  """
  if opens:
    x_BFHWC = jnp.pad(x_BFHWC, ((0, 0), (time - 1, 0), (0, 0), (0, 0), (0, 0)))
  x_BFHWC = einops.rearrange(
    x_BFHWC,
    'B (F t) (H p) (W q) C -> B F H W (C t p q)',
    t=time,
    p=space,
    q=space,
  )
  if x_BFHWC.shape[-1] < features:
    return jnp.repeat(x_BFHWC, features // x_BFHWC.shape[-1], axis=-1)
  return einops.reduce(
    x_BFHWC, 'B F H W (C g) -> B F H W C', 'mean', C=features
  )


def repeat_up(x_BFHWC, *, features: int, time: int, space: int, opens: bool):
  """Repeats channels and unfolds them to pixels: no parameters.

  Args:
    x_BFHWC: a chunk; one that opens the video loses time - 1 frames in front.
    features: channels out; channels divides features * time * space**2.
    time: frames out of each frame.
    space: rows and columns out of each.
    opens: whether the chunk holds frame 0.
  """
  times = features * time * space**2 // x_BFHWC.shape[-1]
  x_BFHWC = einops.rearrange(
    jnp.repeat(x_BFHWC, times, axis=-1),
    'B F H W (C t p q) -> B (F t) (H p) (W q) C',
    t=time,
    p=space,
    q=space,
  )
  return x_BFHWC[:, time - 1 :] if opens else x_BFHWC
