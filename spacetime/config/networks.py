"""Builds the networks of an experiment."""

import dataclasses

from spacetime import SettingError
from spacetime.config.experiment import Experiment
from spacetime.config.sections import AutoencoderSection
from spacetime.data import geometry
from spacetime.data.settings import DataConfig
from spacetime.models import image_encoder, text_encoder
from spacetime.models.autoencoder import identity, wan
from spacetime.models.networks import Networks
from spacetime.models.transformer import dit


def autoencoder(
  section: AutoencoderSection,
) -> identity.IdentityAutoencoder | wan.WanAutoencoder:
  """The autoencoder of a section.

  Raises:
    SettingError: the section names weights, whose own config has the sizes.
  """
  if section.network is None:
    raise SettingError(
      'autoencoder.kind', section.kind, 'a kind whose sizes stand beside it'
    )
  if isinstance(section.network, identity.IdentityAutoencoder):
    return section.network
  return wan.WanAutoencoder(section.network)


def networks(
  experiment: Experiment, *, autoencoder: AutoencoderSection | None = None
) -> Networks:
  """The networks of a transformer's experiment.

  Args:
    experiment: with sections autoencoder, text and model.
    autoencoder: where the experiment names trained weights, the section of
      their own config.
  """
  experiment.require('autoencoder', 'text', 'model')
  built = _autoencoder(autoencoder or experiment.autoencoder)
  model = dataclasses.replace(experiment.model, channels=built.z_dim)
  return Networks(
    built,
    text_encoder.TextEncoder(experiment.text.encoder),
    dit.DiT(model),
    experiment.text.length,
    experiment.text.kind,
    experiment.lora,
    image_encoder.ImageEncoder(experiment.image) if experiment.image else None,
  )


_autoencoder = autoencoder


def clip_geometry(
  data: DataConfig,
  nets: Networks,
  size: tuple[int, int, int] | None = None,
) -> geometry.Geometry:
  """Latent and token grids of a clip of (frames, height, width) pixels, which
  default to those of the data."""
  return geometry.Geometry(
    *(size or data.size),
    tuple(nets.autoencoder.stride),
    tuple(nets.dit.config.patch),
  )
