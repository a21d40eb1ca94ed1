"""Trains a text-to-video transformer or a video autoencoder.

  spacetime train --config=digits:cpu --workdir=runs/digits
  spacetime train --config=wan_t2v_1_3b --checkpoint=WAN --workdir=runs/wan

The same command resumes a run, bit for bit, data included. SIGTERM and Ctrl-C
save and stop. --checkpoint starts a new run from trained weights; with
--config.lora.rank=16 it trains low-rank adapters of them (see export).
"""

import os
import sys
import traceback

import jax
from absl import flags
from ml_collections import config_flags

from spacetime import SettingError, checkpoint
from spacetime.checkpoint.interop import network_files
from spacetime.cli import flag_names
from spacetime.config import describe, parse, unused
from spacetime.media import files as media_files
from spacetime.sharding import multihost
from spacetime.training import profile, run, watchdog

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Experiment, by name or file, such as digits:cpu.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Output folder of the run: checkpoints, metrics and contact sheets, such as '
  'runs/digits.',
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'Weights to start from, such as digits: a run, a weights folder, a bundled '
  'name or a published folder. Default: random weights. A resumed run needs '
  'them only for low-rank adapters whose base has moved.',
)
_TRANSFORMER = flags.DEFINE_string(
  'transformer',
  None,
  'File of a published transformer to start from, in place of --checkpoint or '
  'of the transformer in that folder.',
)
_VAE = flags.DEFINE_string(
  'vae',
  None,
  'File of the published autoencoder that made the cache, which is checked.',
)
_TEXT_ENCODER = flags.DEFINE_string(
  'text_encoder',
  None,
  'File of the published text encoder that made the cache, which is checked.',
)
_IMAGE_ENCODER = flags.DEFINE_string(
  'image_encoder',
  None,
  'File of the published image encoder (CLIP) that made the cache, which is '
  'checked.',
)
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', None, 'sentencepiece model or tokenizer.json of --text_encoder.'
)
_PRINT_CONFIG = flags.DEFINE_bool(
  'print_config',
  False,
  'Print every key of the config with its value and its meaning, and stop.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'Of several processes: HOST:PORT of process 0, or auto on a TPU pod, GKE, '
  'SLURM or Open MPI. Default: JAX_COORDINATOR_ADDRESS.',
)
_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Number of processes. Default: JAX_NUM_PROCESSES.'
)
_PROCESS = flags.DEFINE_integer(
  'process_id', None, 'Number of this process. Default: JAX_PROCESS_ID.'
)
_PREEMPTED = flags.DEFINE_integer(
  'preemption_exit_code',
  0,
  'Exit code after SIGTERM, once all is saved, such as '
  f'{watchdog.EXIT} for a supervisor that restarts on it, as it should on that '
  'code anyway (a hang, a lost peer, a full disk).',
)
_WATCHDOG = flags.DEFINE_float(
  'watchdog',
  1800.0,
  'Seconds without progress, compilation included, after which the process '
  'ends; 0 waits for ever.',
)
_PROFILE = flags.DEFINE_string(
  'profile',
  None,
  'Steps to trace for xprof, START:STOP, such as 10:12; the trace is written '
  'to WORKDIR/profile.',
)


def main() -> None:
  """Flags -> a training run."""
  if _CONFIG.value is None:
    raise SettingError('config', None, 'an experiment, such as digits:cpu')
  experiment = parse.experiment(_CONFIG.value.copy_and_resolve_references())
  unused.warn(experiment, flag_names.config_keys(sys.argv))
  if _PRINT_CONFIG.value:
    print(describe.describe(experiment))
    return
  if not _WORKDIR.value:
    raise SettingError('workdir', None, 'an output folder, such as runs/digits')
  steps = profile.parse(
    _PROFILE.value, checkpoint.absolute(_WORKDIR.value) / 'profile'
  )
  environment = os.environ.get
  multihost.join(
    _COORDINATOR.value or environment('JAX_COORDINATOR_ADDRESS', ''),
    processes=_or_number(_PROCESSES.value, environment('JAX_NUM_PROCESSES')),
    process=_or_number(_PROCESS.value, environment('JAX_PROCESS_ID')),
  )
  stop = multihost.Stop()
  try:
    run.train(
      experiment,
      _WORKDIR.value,
      checkpoint=_CHECKPOINT.value,
      files=network_files.Files(
        transformer=_TRANSFORMER.value,
        vae=_VAE.value,
        text_encoder=_TEXT_ENCODER.value,
        image_encoder=_IMAGE_ENCODER.value,
        tokenizer=_TOKENIZER.value,
      ),
      stop=stop,
      patience=_WATCHDOG.value,
      profile=steps,
    )
  except KeyboardInterrupt as e:
    if not (stop.preempted and _PREEMPTED.value):
      raise
    raise KeyboardInterrupt(_PREEMPTED.value, *e.args) from e
  except OSError as e:
    if e.errno in media_files.UNUSABLE:
      raise
    fail(f'{e}; earlier checkpoints are complete')
  except ValueError:
    raise
  except Exception as e:
    if jax.process_count() == 1:
      raise
    traceback.print_exc()
    # The others wait for this process in a collective operation.
    fail(
      f'process {jax.process_index()}: {type(e).__name__}; others may be lost'
    )
  if stop.preempted:
    sys.exit(_PREEMPTED.value)


def fail(message: str) -> None:
  """Ends the process with the code on which a supervisor restarts."""
  print(
    f'error: {message}; started again, the run resumes from its last '
    f'checkpoint (exit code {watchdog.EXIT})',
    file=sys.stderr,
    flush=True,
  )
  if jax.process_count() > 1:
    os._exit(watchdog.EXIT)  # an orderly shutdown needs all processes
  sys.exit(watchdog.EXIT)


def _or_number(value: int | None, text: str | None) -> int | None:
  if value is None and text:
    if not text.isdigit():
      raise ValueError(
        f'{text!r}: expected a number in JAX_NUM_PROCESSES and JAX_PROCESS_ID'
      )
    return int(text)
  return value
