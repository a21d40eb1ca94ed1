"""Clips of mixed sizes: from a config to what packs them."""

import functools

import numpy as np

from spacetime.config import parse
from spacetime.data import geometry, packing
from spacetime.models.autoencoder import identity
from spacetime.models.transformer import patchify


def cut(config, codec, patch: tuple[int, int, int]) -> packing.Patchify | None:
  """Clips to patches on the host, for packed rows; None where there are none.

  Args:
    config: an experiment's.
    codec: the autoencoder.
    patch: latent cells of a token.

  Raises:
    ValueError: latents that a network has to make, or a size that the patches
      do not divide or no row holds.
  """
  data = parse.data(config)
  world, rows = data.world, data.packing
  grid = functools.partial(
    geometry.Geometry, stride=tuple(codec.stride), patch=tuple(patch)
  )
  mixed = world.mixed is not None
  one = (world.frames, world.height, world.width)
  grids = [grid(*shape) for shape in (world.mixed.shapes if mixed else [one])]
  if not isinstance(rows, packing.SequencePacking):
    return None
  pixels = isinstance(codec, identity.IdentityAutoencoder)
  if not pixels or data.name == 'cache':
    raise ValueError(
      f"data.packing.kind='rows' with autoencoder.kind="
      f'{config.autoencoder.kind!r}, data.name={data.name!r}: expected '
      "'identity' and clips, which the host cuts into patches; take "
      "data.packing.kind='buckets'"
    )
  for found in grids:
    rows.check(found)
  return packing.Patchify(functools.partial(_patches, codec, patch), grid, rows)


def _patches(codec, patch, frames_FHWC: np.ndarray) -> np.ndarray:
  z_Bfhwc = codec.fold(np.asarray(frames_FHWC)[None], xp=np)
  return np.asarray(patchify.patchify(z_Bfhwc, patch)[0])


def measure(config, cut: packing.Patchify) -> tuple[float, int]:
  """(clips, tokens that are no padding) of a batch of rows, the mean."""
  data, rng = parse.data(config), np.random.default_rng(0)

  def draw():
    world = data.world.drawn(rng)
    return cut.geometry(world.frames, world.height, world.width).grid

  clips, padding = packing.measure(data.packing, iter(draw, None))
  tokens = data.packing.length * (1 - padding)
  return clips * data.batch_size, round(tokens * data.batch_size)
