"""Exports a trained model as a folder: safetensors, config, tokenizer.

  spacetime export --checkpoint=runs/digits --out=models/digits
  spacetime export --checkpoint=runs/tuned --out=models/tuned
  spacetime export --checkpoint=runs/lora --out=DIR --lora=diffusers

A transformer that started from published weights is written into a copy of
their folder, which diffusers loads. A LoRA run is written as a LoRA file with
diffusers' or the original names, or merged into a complete model.
"""

import jax.numpy as jnp
from absl import flags

from spacetime import SettingError
from spacetime.checkpoint import export
from spacetime.media import files

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'Work directory of a run, such as runs/digits.'
)
_OUT = flags.DEFINE_string('out', None, 'Folder to make.')
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['float32', 'float16', 'bfloat16'],
  'Dtype of the files; if not set, float32, or that of the base model into '
  'which LoRA weights are merged.',
)
_LORA = flags.DEFINE_enum(
  'lora',
  None,
  [*export.LORA],
  'Form of a LoRA run: a file with the names of another program (original: of '
  "Wan's own repository and ComfyUI), or merged, a complete model.",
)
_BASE = flags.DEFINE_string(
  'base',
  None,
  'Weights that the run started from, if they have moved since.',
)


def main() -> None:
  """Flags -> checkpoint.export.export."""
  for flag in (_CHECKPOINT, _OUT):
    if not flag.value:
      raise SettingError(flag.name, flag.value, 'a folder')
  name = export.export(
    _CHECKPOINT.value,
    files.check_local('out', _OUT.value),
    dtype=_DTYPE.value and jnp.dtype(_DTYPE.value),
    lora=_LORA.value,
    base=_BASE.value,
  )
  print(f'{_OUT.value}: {name}')
