"""Encodes the latents and prompt embeddings of clips once, for training.

  spacetime encode --checkpoint=WAN --data=DIR --out=CACHE
  spacetime encode --checkpoint=digits_autoencoder \\
    --config=digits_pixels:cpu --out=CACHE

The checkpoint is a diffusers folder, a text-to-video model or an autoencoder.
Clips come from a folder with captions (--data) or from an experiment
(--config). Training reads the cache with --config.data.name=cache
--config.data.dir=CACHE. Run again, the command resumes after the last complete
shard.
"""

import sys

from ml_collections import config_flags

from spacetime.cli import common, flag_names, mesh
from spacetime.pipeline.encode_settings import EncodeSettings

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment whose clips are encoded, such as digits_pixels.'
)
common.define_flags(EncodeSettings)
mesh.define_flags()


def main() -> None:
  """Flags -> a cache."""
  from spacetime.config import parse, unused
  from spacetime.pipeline import precompute  # here: it imports JAX

  experiment = None
  if _CONFIG.value is not None:
    experiment = parse.experiment(_CONFIG.value.copy_and_resolve_references())
    unused.warn(experiment, flag_names.config_keys(sys.argv))
  settings = EncodeSettings(**common.flag_values(EncodeSettings))
  try:
    precompute.encode(settings, experiment=experiment, mesh=mesh.value())
  except (KeyboardInterrupt, OSError) as e:
    e.add_note('the same command resumes after the last complete shard')
    raise
  print(f'{settings.out}: written')
