"""Dry run: compiles for TPUs that do not exist here, and reports the result.

  python -m spacetime compile --config=experiments/wan_t2v_14b.py:720p \\
    --topology=v5p-256 [--num_slices=2] [--config.mesh.context=8] \\
    [--program=sample] [--json]

The compiler is that of TPUs (pip install 'spacetime-video[tpu-compile]'); it
runs on a CPU in minutes. The program is the one that spacetime train compiles,
with the same options. Exit code 0: it fits. 1: it does not, or a device gathers
a complete activation.
"""

import sys

import jax
from absl import flags
from ml_collections import config_flags

from spacetime.config import parse
from spacetime.dryrun import programs, render
from spacetime.dryrun import report as report_lib
from spacetime.media import files
from spacetime.sharding import topology

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Experiment to compile. Example: experiments/wan_t2v_14b.py:720p.',
)
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  None,
  'TPU slice, by the name under which it is sold, or by its sides in chips. '
  'Examples: v5p-256, v5p:4x4x8.',
)
_SLICES = flags.DEFINE_integer(
  'num_slices', 0, 'Number of slices; 0 takes mesh.num_slices. Example: 2.'
)
_PROGRAM = flags.DEFINE_enum(
  'program',
  'train',
  programs.PROGRAMS,
  'Program to compile: a training step, a step of the solver, or the decoder.',
)
_JSON = flags.DEFINE_bool('json', False, 'Print the report as a line of JSON.')
_HLO = flags.DEFINE_string(
  'hlo', None, 'File for the text of the compiled program. Example: step.txt.'
)


def main() -> None:
  """Compiles a program, prints the report and sets the exit code."""
  if _CONFIG.value is None or not _TOPOLOGY.value:
    raise ValueError('--config and --topology: expected both; see --help')
  try:
    experiment = parse.experiment(_CONFIG.value.copy_and_resolve_references())
  except OSError as e:  # a missing file raises on first use
    raise ValueError(f'--config: {e}') from e
  experiment.require('mesh')
  slices = topology.parse(
    _TOPOLOGY.value, slices=_SLICES.value or experiment.mesh.num_slices
  )
  # The devices are descriptions: JAX shall not search for real ones.
  jax.config.update('jax_platforms', 'cpu')
  report = report_lib.dry_run(
    experiment,
    _PROGRAM.value,
    slices,
    dump=files.as_path(_HLO.value).write_text if _HLO.value else None,
  )
  if _JSON.value:
    config = config_flags.get_config_filename(flags.FLAGS['config'])
    print(render.as_json(report, slices, config=config, program=_PROGRAM.value))
  else:
    print(render.as_text(report, slices))
  if not report.passes:
    sys.exit(1)
