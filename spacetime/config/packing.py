"""Sequence packing of an experiment's clips of mixed sizes."""

import functools

import numpy as np

from spacetime import SettingError
from spacetime.config.experiment import Experiment
from spacetime.data import geometry, packing
from spacetime.data.settings import DataConfig
from spacetime.models.autoencoder import identity
from spacetime.models.transformer import patchify


def cut(
  experiment: Experiment, autoencoder, patch: tuple[int, int, int]
) -> packing.Patchify | None:
  """The host's patchify for packed rows; None for other batches.

  Args:
    experiment: experiment of the run.
    autoencoder: autoencoder of the latents.
    patch: latent cells of a token.

  Raises:
    SettingError: latents that need a network, or a size that the patches do
      not divide or no row holds.
  """
  data = experiment.data
  grid = functools.partial(
    geometry.Geometry, stride=tuple(autoencoder.stride), patch=tuple(patch)
  )
  shapes = [data.size] if data.mixed is None else data.mixed.shapes
  grids = [grid(*shape) for shape in shapes]
  if not isinstance(data.packing, packing.SequencePacking):
    return None
  pixels = isinstance(autoencoder, identity.IdentityAutoencoder)
  if not pixels or data.source.HAS_LATENTS:
    raise SettingError(
      'data.packing.kind',
      'rows',
      "'buckets', since the host cuts clips into patches only with "
      "`autoencoder.kind`='identity' and without a cache",
    )
  for each in grids:
    data.packing.check(each)
  return packing.Patchify(
    functools.partial(_patches, autoencoder, patch), grid, data.packing
  )


def _patches(autoencoder, patch, frames_FHWC: np.ndarray) -> np.ndarray:
  z_Bfhwc = autoencoder.fold(np.asarray(frames_FHWC)[None], xp=np)
  return np.asarray(patchify.patchify(z_Bfhwc, patch)[0])


def measure(data: DataConfig, cut: packing.Patchify) -> tuple[float, int]:
  """Mean clips and tokens, without padding, of a batch of packed rows."""
  rng = np.random.default_rng(0)

  def draw():
    world = data.world.drawn(rng)
    return cut.geometry(world.frames, world.height, world.width).grid

  clips, padding = packing.measure(data.packing, iter(draw, None))
  tokens = data.packing.length * (1 - padding)
  return clips * data.batch_size, round(tokens * data.batch_size)
