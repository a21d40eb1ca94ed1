"""First and last layers that start as a linear denoiser of patches.

A patch of pixels has far more values than the transformer is wide, and the
layers that take it in and give it out are slow to learn from nothing. Started
from the principal components of real patches, a fresh network is the best
linear denoiser of a single patch at one level (the Wiener filter), and every
step goes into what a linear map of a patch cannot do.
"""

import dataclasses

import einops
import jax.numpy as jnp
import numpy as np
from scipy import linalg

from spacetime import SettingError


@dataclasses.dataclass(frozen=True)
class Components:
  """Principal components of patches, float32.

  Attributes:
    mean_V: mean of the patches.
    basis_VR: orthonormal columns, the largest variance first.
    variance_R: along each column.
  """

  mean_V: np.ndarray
  basis_VR: np.ndarray
  variance_R: np.ndarray


def rank(requested: int, model) -> int:
  """Number of principal components of a patch that enter a transformer.

  Args:
    requested: train.pca_init_rank; 0 is a third of the width. Noise fills the
      channels of the components; text, position and timestep need the rest.
    model: its DiTConfig.

  Raises:
    SettingError: more than there are channels or values.
  """
  most = min(model.width, model.patch_volume)
  if requested > most:
    raise SettingError(
      'train.pca_init_rank',
      requested,
      f'at most {most}, the lesser of `model.width`={model.width} and the '
      f'{model.patch_volume} values of a patch',
    )
  return requested or min(model.width // 3, model.patch_volume)


def components(x_BNV: np.ndarray, *, rank: int) -> Components:
  """Computes the principal components of patches.

  Args:
    x_BNV: patches.
    rank: R, number of components to keep; at most V and at most the number of
      patches.

  Raises:
    ValueError: fewer patches or values than components.
  """
  x_PV = einops.rearrange(x_BNV, 'B N V -> (B N) V').astype(np.float32)
  if rank > min(x_PV.shape):
    raise ValueError(
      f'{x_PV.shape[0]} patches of {x_PV.shape[1]} values are too few for '
      f'{rank} components: train on more clips, or set `train.pca_init_clips` '
      'to 0 for random layers, or reduce `train.pca_init_rank`'
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


def start(dit: dict, pca: Components, *, level: float = 0.8) -> dict:
  """Returns the transformer's parameters with first and last layers from PCA.

  At level t a coefficient y of z_t has variance s^2 = (1 - t)^2 v + t^2, where
  v is that of the data. It enters as y / s and leaves as (1 - t) v / s of that:
  together the Wiener estimate. The rest of the width starts empty, but for
  position features, if the transformer has them, which start there as strong as
  the noise. The final norm scales tokens up by the share that is in use.

  Args:
    dit: parameters of a fresh transformer.
    pca: as many components as the width, or fewer.
    level: t. Nearer to 1, strong components are damped less.

  Source: Wiener 1949; Pearson 1901.
  """
  rank, width = len(pca.variance_R), dit['patch_embed']['kernel'].shape[1]
  empty = width - rank
  clean = 1.0 - level
  deviation_R = np.sqrt(clean**2 * pca.variance_R + level**2)
  kernel_VR = pca.basis_VR / deviation_R
  gain_R = clean * pca.variance_R / deviation_R
  energy = rank
  if 'pos_embed' in dit and empty:
    dit = dit | {'pos_embed': {'kernel': _position_kernel(dit, rank)}}
    energy = 2 * rank
  head_RV = (pca.basis_VR * gain_R).T * np.sqrt(energy / width)
  return dit | {
    'patch_embed': {
      'kernel': jnp.pad(kernel_VR, ((0, 0), (0, empty))),
      'bias': jnp.pad(-clean * pca.mean_V @ kernel_VR, (0, empty)),
    },
    'head': {
      'kernel': jnp.pad(head_RV, ((0, empty), (0, 0))),
      'bias': jnp.asarray(pca.mean_V),
    },
  }


def _position_kernel(dit: dict, rank: int) -> jnp.ndarray:
  """Returns a kernel from position features to the channels that patches leave
  empty, with unit energy for each of the components there."""
  features, width = dit['pos_embed']['kernel'].shape
  normal = np.random.default_rng(0).normal(size=(features, width - rank))
  normal *= np.sqrt(2 * rank / normal.size)
  return jnp.pad(normal.astype(np.float32), ((0, 0), (rank, 0)))
