"""First and last layers that start as a linear denoiser of patches.

A patch of pixels has far more values than the transformer is wide, and the
layers that take it in and give it out are slow to learn from nothing. Started
from the principal components of real patches, a fresh network is the best
linear denoiser of a single patch at level 1/2 (the Wiener filter), and every
step goes into what a linear map of a patch cannot do.
"""

import dataclasses

import einops
import jax.numpy as jnp
import numpy as np
from scipy import linalg


@dataclasses.dataclass(frozen=True)
class Components:
  """Of patches: float32.

  Attributes:
    mean_V: the mean patch.
    basis_VR: orthonormal columns, the largest variance first.
    variance_R: along each column.
  """

  mean_V: np.ndarray
  basis_VR: np.ndarray
  variance_R: np.ndarray


def components(x_BNV: np.ndarray, *, rank: int) -> Components:
  """The principal components of the patches of some clips.

  Args:
    x_BNV: patches.
    rank: R, how many to keep; at most V and at most the number of patches.

  Raises:
    ValueError: fewer patches or values than components.
  """
  x_PV = einops.rearrange(x_BNV, 'B N V -> (B N) V').astype(np.float32)
  if rank > min(x_PV.shape):
    raise ValueError(
      f'{x_PV.shape[0]} patches of {x_PV.shape[1]} values: too few for {rank} '
      'components; change train.principal_clips or model.width'
    )
  mean_V = x_PV.mean(axis=0)
  x_PV = x_PV - mean_V
  size = x_PV.shape[1]
  variance_R, basis_VR = linalg.eigh(
    x_PV.T @ x_PV / len(x_PV), subset_by_index=(size - rank, size - 1)
  )
  return Components(
    mean_V, basis_VR[:, ::-1].copy(), np.maximum(variance_R[::-1], 1e-8)
  )


def start(dit: dict, found: Components) -> dict:
  """The transformer's parameters with first and last layers of components.

  With z_t = (z + noise) / 2, a coefficient y of variance (v + 1) / 4 enters at
  unit variance, and leaves as v / sqrt(v + 1) of itself: together the Wiener
  estimate 2 v y / (v + 1). The rest of the width starts empty, for what is not
  in a patch; the final norm scales tokens up by the share that is full.

  Args:
    dit: parameters of a fresh transformer.
    found: as many components as the width, or fewer.

  Source: Wiener 1949; Pearson 1901.
  """
  rank, width = len(found.variance_R), dit['patch_embed']['kernel'].shape[1]
  empty = width - rank
  scale_R = 2.0 / np.sqrt(found.variance_R + 1.0)
  kernel_VR = found.basis_VR * scale_R
  gain_R = found.variance_R / np.sqrt(found.variance_R + 1.0)
  head_RV = (found.basis_VR * gain_R).T * np.sqrt(rank / width)
  return dit | {
    'patch_embed': {
      'kernel': jnp.pad(kernel_VR, ((0, 0), (0, empty))),
      'bias': jnp.pad(-0.5 * found.mean_V @ kernel_VR, (0, empty)),
    },
    'head': {
      'kernel': jnp.pad(head_RV, ((0, empty), (0, 0))),
      'bias': jnp.asarray(found.mean_V),
    },
  }
