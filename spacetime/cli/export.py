"""Writes a trained model as a folder: safetensors, config, tokenizer.

  python -m spacetime export --checkpoint=runs/digits --out=models/digits
  python -m spacetime export --checkpoint=runs/tuned --out=models/tuned
  python -m spacetime export --checkpoint=runs/pairs --out=DIR --lora=diffusers

A transformer that started from published weights is written into a copy of
their folder, which diffusers loads. Of low-rank pairs --lora chooses: their
file as diffusers or the original repository names it, or the model with them
merged.
"""

import pathlib

import jax
from absl import flags

from spacetime.checkpoint import export

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'A work directory.')
_OUT = flags.DEFINE_string('out', None, 'The folder to make.')
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['float32', 'float16', 'bfloat16'],
  'What the numbers are stored as; as they are if not set: float32, and what '
  'pairs are merged into as that is stored.',
)
_LORA = flags.DEFINE_enum(
  'lora',
  None,
  [*export.LORA],
  'Of low-rank pairs: their file in one dialect of names, or the model with '
  'them merged.',
)
_BASE = flags.DEFINE_string(
  'base',
  None,
  'The weights that the run started from, if they are not where they were.',
)


def main() -> None:
  """Flags -> a folder with the averaged parameters."""
  if not _CHECKPOINT.value or not _OUT.value:
    raise ValueError('--checkpoint and --out: expected both; see --help')
  told = export.write(
    _CHECKPOINT.value,
    pathlib.Path(_OUT.value),
    dtype=_DTYPE.value and jax.numpy.dtype(_DTYPE.value),
    lora=_LORA.value,
    base=_BASE.value,
  )
  print(f'{_OUT.value}: {told}')
