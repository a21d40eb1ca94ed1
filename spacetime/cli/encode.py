"""Encodes the latents and prompt embeddings of clips once, for training.

  spacetime encode --checkpoint=WAN --data=DIR --out=CACHE
  spacetime encode --checkpoint=digits_autoencoder \\
    --config=digits:latent --out=CACHE

The checkpoint is a diffusers folder, a text-to-video model or an autoencoder.
Clips come from a folder with captions (--data) or from an experiment
(--config). Training reads the cache with --config.data.name=cache
--config.data.dir=CACHE. Run again, the command resumes after the last complete
shard.
"""

import dataclasses

from absl import flags
from ml_collections import config_flags

from spacetime.config import parse
from spacetime.data import latent_cache
from spacetime.data.digits import world as world_lib
from spacetime.data.settings import DataConfig
from spacetime.pipeline import precompute

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'Model or autoencoder that encodes: a folder or a bundled name.',
)
_DATA = flags.DEFINE_string('data', None, 'Folder of clips with captions.')
_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment whose clips are encoded.'
)
_OUT = flags.DEFINE_string('out', None, 'Folder of the cache.')
_TEXT = flags.DEFINE_enum(
  'text',
  None,
  ['embeddings', 'captions'],
  'Stored form of captions: embeddings, for text.kind=frozen, where the '
  'checkpoint has a text encoder; captions alone, for text.kind=trained.',
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  'float32',
  sorted(latent_cache.DTYPES),
  'Type of stored latents and embeddings.',
)
_FRAMES = flags.DEFINE_integer(
  'frames', None, "Frames of a clip; defaults to the checkpoint's."
)
_HEIGHT = flags.DEFINE_integer(
  'height', None, "Clip height in pixels; defaults to the checkpoint's."
)
_WIDTH = flags.DEFINE_integer(
  'width', None, "Clip width in pixels; defaults to the checkpoint's."
)
_FPS = flags.DEFINE_float(
  'fps', None, "Frames a second; defaults to the checkpoint's."
)
_BATCH = flags.DEFINE_integer('batch', 1, 'Clips encoded at once.')
_SHARD = flags.DEFINE_integer('shard', 64, 'Clips in each file of the cache.')


def main() -> None:
  """Flags -> a cache."""
  if not _CHECKPOINT.value or not _OUT.value:
    raise ValueError('--checkpoint and --out: expected both; see --help')
  if (_DATA.value is None) == (_CONFIG.value is None):
    raise ValueError('expected one of --data and --config')
  if _BATCH.value < 1:
    raise ValueError(f'--batch={_BATCH.value}: expected 1 or more')
  encoder = precompute.open_encoder(_CHECKPOINT.value)
  data, seed = clips_section(encoder)
  precompute.encode(
    encoder,
    data,
    _OUT.value,
    seed=seed,
    text=_TEXT.value,
    dtype=_DTYPE.value,
    batch=_BATCH.value,
    shard=_SHARD.value,
  )
  print(f'{_OUT.value}: written')


def clips_section(
  encoder: precompute.Encoder,
) -> tuple[DataConfig, int]:
  """The clips that the flags name, and the seed of the digits."""
  sizes = dict(zip(('frames', 'height', 'width'), encoder.size, strict=True))
  flagged = (_FRAMES.value, _HEIGHT.value, _WIDTH.value)
  changes = {
    name: value
    for name, value in zip(sizes, flagged, strict=True)
    if value is not None
  }
  if _CONFIG.value is not None:
    experiment = parse.experiment(_CONFIG.value.copy_and_resolve_references())
    experiment.require('data')
    data, seed = experiment.data, experiment.seed
  else:
    seed = 0
    data = DataConfig(
      name='folder',
      dir=_DATA.value,
      clips=0,
      held_out_clips=0,
      **sizes,
      world=world_lib.World(),
      batch_size=1,
      caption_dropout=0.0,
      crop=None,
      fps=encoder.fps,
    )
  fps = data.fps if _FPS.value is None else _FPS.value
  return dataclasses.replace(data, fps=fps, **changes), seed
