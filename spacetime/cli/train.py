"""Trains a text-to-video transformer, or an autoencoder.

  python -m spacetime train --config=experiments/digits.py:cpu \\
    --workdir=runs/digits [--config.train.steps=100] [--cpu_devices=8]

Started again with the same --workdir, a run goes on where it stopped, bit for
bit, data included. SIGTERM and Ctrl-C save and stop.

--checkpoint starts a new run from trained weights: a published folder, a run, a
weights folder or a bundled model. With --config.lora.rank=16 it trains low-rank
pairs beside them (see export).
"""

import os
import sys
import traceback

import jax
from absl import flags
from ml_collections import config_flags

from spacetime import checkpoint
from spacetime.config import parse
from spacetime.sharding import multihost
from spacetime.training import profile, run, watchdog

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'An experiment, such as experiments/digits.py:cpu.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where the run lives: checkpoints, metrics, sheets.'
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  'Weights to start from; nothing starts from chance. A run that goes on needs '
  'it no more, but for low-rank pairs, whose base may have moved.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'Of several processes: HOST:PORT of process 0, or auto on a TPU pod, GKE, '
  'SLURM or Open MPI. Default: JAX_COORDINATOR_ADDRESS.',
)
_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many there are. Default: JAX_NUM_PROCESSES.'
)
_PROCESS = flags.DEFINE_integer(
  'process_id', None, 'Which of them this is. Default: JAX_PROCESS_ID.'
)
_PREEMPTED = flags.DEFINE_integer(
  'preemption_exit_code',
  0,
  f'Exit code after SIGTERM, once all is saved: {watchdog.EXIT} for a '
  'supervisor that starts again on it, as it should on that code anyway (a '
  'hang, a lost peer, a full disk).',
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
  'START:STOP: writes a trace of these steps for xprof into WORKDIR/profile.',
)


def main() -> None:
  """Flags -> run."""
  if _CONFIG.value is None or not _WORKDIR.value:
    raise ValueError('--config and --workdir: expected both; see --help')
  try:
    config = parse.experiment(_CONFIG.value.copy_and_resolve_references())
  except OSError as e:  # of a file that is not there; found on first use
    raise ValueError(f'--config: {e}') from e
  traced = profile.parse(
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
      config,
      _WORKDIR.value,
      checkpoint=_CHECKPOINT.value,
      stop=stop,
      patience=_WATCHDOG.value,
      profile=traced,
    )
  except OSError as e:
    fail(f'{e}; what was saved before is whole')
  except ValueError:
    raise
  except Exception as e:
    if jax.process_count() == 1:
      raise
    traceback.print_exc()
    # What the others wait for will not come; nor do they for this one.
    fail(
      f'process {jax.process_index()}: {type(e).__name__}; others may be gone'
    )
  if stop.preempted:
    sys.exit(_PREEMPTED.value)


def fail(message: str) -> None:
  """Ends the process so that a supervisor starts the run again."""
  print(
    f'error: {message}; started again, the run goes on from its last '
    f'checkpoint (exit code {watchdog.EXIT})',
    file=sys.stderr,
    flush=True,
  )
  if jax.process_count() > 1:
    os._exit(watchdog.EXIT)  # to shut down in order takes all of them
  sys.exit(watchdog.EXIT)


def _or_number(value: int | None, text: str | None) -> int | None:
  if value is None and text:
    if not text.isdigit():
      raise ValueError(
        f'{text!r}: expected a number in JAX_NUM_PROCESSES and JAX_PROCESS_ID'
      )
    return int(text)
  return value
