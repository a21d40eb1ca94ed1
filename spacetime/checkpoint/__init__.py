"""Checkpoints: files of a run and of weights, read and written.

A work directory is written while training:

  config.json  tokenizer.model
  checkpoints/STEP/{state,data}   written by Orbax, atomically

A weights directory is written for release:

  config.json  tokenizer.model  weights.safetensors

`read_config`, `read_tokenizer`, `load_params` and `weights_hash` read both.
"""

import importlib

from spacetime.checkpoint.configs import (
  check_config,
  config_changes,
  read_config,
  read_experiment,
  read_tokenizer,
  write_config,
)
from spacetime.checkpoint.params import check_params, load_params, stored
from spacetime.checkpoint.paths import (
  CONFIG,
  STEPS,
  TOKENIZER,
  WEIGHTS,
  absolute,
  has_step,
)
from spacetime.checkpoint.trees import saved_shapes
from spacetime.checkpoint.weights import save_weights, weights_hash

__all__ = [
  'CONFIG',
  'STEPS',
  'TOKENIZER',
  'WEIGHTS',
  'Checkpoints',
  'absolute',
  'check_config',
  'check_params',
  'config_changes',
  'has_step',
  'load_params',
  'read_config',
  'read_experiment',
  'read_tokenizer',
  'save_weights',
  'saved_shapes',
  'stored',
  'weights_hash',
  'write_config',
]


def __getattr__(name: str):
  if name != 'Checkpoints':
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  # Only runs need Orbax, which takes half a second to import.
  return importlib.import_module(f'{__name__}.steps').Checkpoints
