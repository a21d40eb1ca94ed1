"""The networks that do not move while training, opened to compute with once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from spacetime import base, build, checkpoint, pretrained, sharding
from spacetime import config as config_lib
from spacetime.interop import folders


@dataclasses.dataclass(frozen=True)
class Encoder:
  """What a cache is made with.

  Attributes:
    fingerprint: of the autoencoder.
    codec: video <-> latents.
    read: -> its parameters.
    model: that has a text encoder; None where there is none.
    size: (frames, height, width) that it was made for.
    fps: likewise.
  """

  fingerprint: str
  codec: Any
  read: Callable[[], dict] = dataclasses.field(repr=False)
  model: pretrained.Opened | None
  size: tuple[int, int, int]
  fps: float


def open_encoder(path: str) -> Encoder:
  """Opens a published folder, a text-to-video model or an autoencoder.

  Raises:
    ValueError: none of these, or damaged.
  """
  mesh = sharding.make_mesh(
    sharding.MeshConfig(data=1), devices=jax.devices()[:1]
  )
  folder = build.resolve(path)
  if folders.is_pipeline(folder):
    model = pretrained.open_published(folder, mesh=mesh)
    name = folders.open_part(folder, 'vae').fingerprint()
  else:
    config = checkpoint.read_config(folder)
    if config.get('stage') == 'autoencoder':
      codec = build.autoencoder(config)
      name = checkpoint.weights_hash(folder)
      read = lambda: pretrained.load_own(config, folder, mesh=mesh)  # noqa: E731
      return Encoder(
        name, codec, lambda: read()['autoencoder'], None, *_clips(config)
      )
    model = pretrained.open_model(path, mesh=mesh)
    name = base.fingerprint_of_autoencoder(config, beside=folder)
  return Encoder(
    name,
    model.networks.autoencoder,
    lambda: model.read('autoencoder'),
    model,
    *_clips(model.config),
  )


def _clips(config) -> tuple[tuple[int, int, int], float]:
  data = config_lib.data(config)
  world = data.world
  return (world.frames, world.height, world.width), data.fps
