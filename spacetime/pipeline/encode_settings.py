"""Encoding settings: the flags of `encode`. Imports no JAX."""

import dataclasses

from spacetime import SettingError

TEXTS = ('embeddings', 'captions')
DTYPES = ('float32', 'bfloat16')


def _field(default, group: str, text: str, *, example: str | None = None):
  metadata = {'help': text, 'group': group}
  if example is not None:
    metadata['example'] = example
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class EncodeSettings:
  """Settings of a cache of latents and captions.

  The clips are those of `data` or of an experiment. Sizes that are None are the
  experiment's, or the checkpoint's with `data`.

  Raises:
    SettingError: a value that cannot work.
  """

  checkpoint: str | None = _field(
    None,
    'input',
    'Model or autoencoder that encodes: a bundled name or a folder.',
    example='digits_autoencoder',
  )
  transformer: str | None = _field(
    None,
    'input',
    'File of a published transformer, whose sizes a cache with embeddings '
    'needs, in place of that of `checkpoint`.',
  )
  vae: str | None = _field(
    None,
    'input',
    'File of a published autoencoder.',
    example='wan_2.1_vae.safetensors',
  )
  text_encoder: str | None = _field(
    None, 'input', 'File of a published text encoder.'
  )
  image_encoder: str | None = _field(
    None, 'input', 'File of the published CLIP image encoder, if it has one.'
  )
  tokenizer: str | None = _field(
    None, 'input', 'sentencepiece model or tokenizer.json.'
  )
  data: str | None = _field(
    None,
    'input',
    'Folder of clips with captions; or set `config`.',
    example='clips',
  )
  text: str | None = _field(
    None,
    'input',
    'Stored form of captions: embeddings, for text.kind=frozen, or captions, '
    'for text.kind=trained. Default: embeddings if the checkpoint has a text '
    'encoder.',
    example='captions',
  )
  frames: int | None = _field(
    None,
    'length',
    "Frames of a clip; the default is the checkpoint's or the experiment's.",
    example='33',
  )
  height: int | None = _field(
    None,
    'length',
    'Clip height in pixels; the default is as for `frames`.',
    example='48',
  )
  width: int | None = _field(
    None,
    'length',
    'Clip width in pixels; the default is as for `frames`.',
    example='96',
  )
  fps: float | None = _field(
    None,
    'length',
    'Frames per second; the default is as for `frames`.',
    example='8',
  )
  batch_size: int = _field(1, 'memory', 'Clips encoded at once.', example='16')
  dtype: str = _field(
    'float32',
    'output',
    'Dtype of stored latents and embeddings: float32 or bfloat16.',
    example='bfloat16',
  )
  shard: int = _field(
    64, 'output', 'Clips in each file of the cache.', example='256'
  )
  max_unreadable: float | None = _field(
    None,
    'input',
    'Largest share of the clips that may be unreadable or too short: these are '
    "skipped and reported. Default: the experiment's, or 0.2.",
    example='0.01',
  )
  out: str | None = _field(
    None,
    'output',
    'Folder of the cache, created if it does not exist.',
    example='cache',
  )

  def __post_init__(self):
    if not self.checkpoint and not self.transformer:
      raise SettingError(
        'checkpoint', self.checkpoint, 'a model or an autoencoder'
      )
    if not self.out:
      raise SettingError('out', self.out, 'a folder for the cache')
    for name, values in (('text', (None, *TEXTS)), ('dtype', DTYPES)):
      if getattr(self, name) not in values:
        names = ', '.join(filter(None, values))
        raise SettingError(name, getattr(self, name), f'one of {names}')
    share = self.max_unreadable
    if share is not None and not 0 <= share < 1:
      raise SettingError('max_unreadable', share, '0 or more, below 1')
    for name in ('batch_size', 'shard'):
      if getattr(self, name) < 1:
        raise SettingError(name, getattr(self, name), '1 or more')

  @property
  def files(self) -> dict[str, str]:
    """The files of networks that are set."""
    names = (
      *('transformer', 'vae', 'text_encoder', 'image_encoder', 'tokenizer'),
    )
    values = {name: getattr(self, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}

  @property
  def clips(self) -> dict:
    """The settings of the clips that are set."""
    names = ('frames', 'height', 'width', 'fps', 'max_unreadable')
    values = {name: getattr(self, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
