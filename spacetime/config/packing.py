"""Sequence packing of an experiment's clips of mixed sizes."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from spacetime import SettingError
from spacetime.config.experiment import Experiment
from spacetime.data import geometry, packing
from spacetime.data.settings import DataConfig
from spacetime.media.pixels import to_video
from spacetime.models.autoencoder import identity
from spacetime.models.transformer import patchify


def grid(
  autoencoder, patch: tuple[int, int, int]
) -> Callable[..., geometry.Geometry]:
  """Returns (frames, height, width) -> Geometry of a clip."""
  return functools.partial(
    geometry.Geometry, stride=tuple(autoencoder.stride), patch=tuple(patch)
  )


def make_patchify(
  experiment: Experiment,
  autoencoder,
  patch: tuple[int, int, int],
  frozen: dict | None = None,
) -> packing.Patchify | None:
  """The host's patchify for packed rows; None for other batches.

  Latents of a network are computed while clips are read, one latent frame after
  another: clips of one height and width share two compiled programs, whatever
  their duration.

  Args:
    experiment: experiment of the run.
    autoencoder: autoencoder of the latents.
    patch: latent cells of a token.
    frozen: {'autoencoder': its parameters}; None makes no patches of a
      network, for counting.

  Raises:
    SettingError: a cache, or a size that the patches do not divide or no row
      holds.
  """
  data, geometries = experiment.data, grid(autoencoder, patch)
  grids = [geometries(*shape) for shape in data.shapes]
  if not isinstance(data.packing, packing.SequencePacking):
    return None
  if data.source.HAS_LATENTS:
    raise SettingError(
      'data.packing.kind',
      'rows',
      "'buckets' with a cache, since rows are patchified as clips are read",
    )
  for each in grids:
    data.packing.check(each)
  if isinstance(autoencoder, identity.IdentityAutoencoder):
    patches = functools.partial(_patches, autoencoder, patch)
    return packing.Patchify(patches, geometries, data.packing)
  params = (frozen or {}).get('autoencoder')
  patches = None if params is None else _encoder(autoencoder, patch, params)
  return packing.Patchify(patches, geometries, data.packing, encodes=True)


def _encoder(autoencoder, patch, params):
  """frames_FHWC -> x_NV, by the autoencoder on a device of this process."""
  params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
  first = jax.jit(lambda p, x: autoencoder.encode_first(p, to_video(x)))
  step = jax.jit(
    lambda p, cache, x: autoencoder.encode_step(p, cache, to_video(x))
  )

  def patches(frames_FHWC: np.ndarray) -> np.ndarray:
    """frames_FHWC, uint8, to the patches of its latents, float32 (N, V)."""
    time, video = autoencoder.stride[0], np.asarray(frames_FHWC)[None]
    cache, z_Bfhwc = first(params, video[:, :1])
    parts = [z_Bfhwc]
    for start in range(1, video.shape[1], time):
      cache, z_Bfhwc = step(params, cache, video[:, start : start + time])
      parts.append(z_Bfhwc)
    z_Bfhwc = np.concatenate([np.asarray(z) for z in parts], axis=1)
    return np.asarray(patchify.patchify(z_Bfhwc, patch)[0])

  return patches


def _patches(autoencoder, patch, frames_FHWC: np.ndarray) -> np.ndarray:
  z_Bfhwc = autoencoder.fold(np.asarray(frames_FHWC)[None], xp=np)
  return np.asarray(patchify.patchify(z_Bfhwc, patch)[0])


@dataclasses.dataclass(frozen=True)
class BatchMeans:
  """Means over batches of packed rows.

  Attributes:
    clips: clips in a batch.
    tokens: tokens without padding.
    cost: sum over the clips of what each costs, such as FLOPs.
  """

  clips: float
  tokens: int
  cost: float


def measure(
  data: DataConfig,
  patchify: packing.Patchify,
  cost: Callable[[tuple[int, int, int]], float],
) -> BatchMeans:
  """The means over batches of packed rows of `data.mixed`.

  Args:
    data: section of the config.
    patchify: the host's patchify.
    cost: tokens of a clip along time, height and width -> its cost.
  """
  rng = np.random.default_rng(0)

  def draw():
    world = data.world.drawn(rng)
    return patchify.geometry(world.frames, world.height, world.width).grid

  row = packing.measure(data.packing, iter(draw, None), cost=cost)
  tokens = data.packing.length * (1 - row.padding)
  rows = data.batch_size
  return BatchMeans(row.clips * rows, round(tokens * rows), row.cost * rows)
