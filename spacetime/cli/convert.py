"""Converts a published folder of Wan to a weights folder, or back.

  spacetime convert --source=DIR --target=DIR [--dtype=bfloat16]
  spacetime convert --transformer=FILE --vae=FILE --text_encoder=FILE \\
    --target=DIR

The direction depends on --source: a folder with model_index.json, as diffusers
writes it, becomes a weights folder; a weights folder becomes one that diffusers
loads. Tensors pass one at a time.
"""

from absl import flags

from spacetime import SettingError

_SOURCE = flags.DEFINE_string(
  'source', None, 'Folder to read, such as models/Wan2.1-T2V-1.3B-Diffusers.'
)
_TARGET = flags.DEFINE_string('target', None, 'Folder to make.')
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['float32', 'bfloat16', 'float16'],
  'Dtype of the transformer and the text encoder; theirs if not set. The '
  'autoencoder, and parameters that compute in float32, keep theirs.',
)
_TRANSFORMER = flags.DEFINE_string(
  'transformer',
  None,
  "One of two transformers of --source, 'transformer' or 'transformer_2', or a "
  'file of one.',
)
_VAE = flags.DEFINE_string('vae', None, 'File of a published autoencoder.')
_TEXT_ENCODER = flags.DEFINE_string(
  'text_encoder', None, 'File of a published text encoder.'
)
_IMAGE_ENCODER = flags.DEFINE_string(
  'image_encoder', None, 'File of the published CLIP image encoder, if any.'
)
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', None, 'sentencepiece model or tokenizer.json.'
)
_VARIANT = flags.DEFINE_string(
  'variant', None, 'Variant of the files of --source, such as bf16.'
)
_SHARD = flags.DEFINE_float(
  'shard_gb', 5.0, 'Size of the largest file of the target, in 10^9 bytes.'
)


def main() -> None:
  """Flags -> checkpoint.convert.convert."""
  import jax.numpy as jnp

  from spacetime.checkpoint import convert
  from spacetime.checkpoint.interop import network_files

  transformer = _TRANSFORMER.value
  chosen = transformer if transformer in convert.TRANSFORMERS else None
  files = network_files.Files(
    transformer=None if chosen else transformer,
    vae=_VAE.value,
    text_encoder=_TEXT_ENCODER.value,
    image_encoder=_IMAGE_ENCODER.value,
    tokenizer=_TOKENIZER.value,
  )
  required = (_TARGET,) if files.transformer else (_SOURCE, _TARGET)
  for flag in required:
    if not flag.value:
      raise SettingError(flag.name, flag.value, 'a folder')
  if not 0 < _SHARD.value < float('inf'):
    raise SettingError(_SHARD.name, _SHARD.value, 'more than 0 and finite')
  convert.convert(
    _SOURCE.value,
    _TARGET.value,
    dtype=_DTYPE.value and jnp.dtype(_DTYPE.value),
    transformer=chosen,
    files=files,
    variant=_VARIANT.value,
    shard_bytes=int(_SHARD.value * 1e9),
  )
  print(f'{_TARGET.value}: written')
