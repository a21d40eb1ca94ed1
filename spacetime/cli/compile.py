"""Compiles ahead of time: a dry run, or the programs of sampling to save.

  spacetime compile --config=wan_t2v_14b:720p --topology=v5p-256 \\
    [--num_slices=2] [--config.mesh.context=8] [--program=sample] [--json]
  spacetime compile --program=sample --checkpoint=WAN --topology=v6e-8 \\
    --mesh.data=2 --mesh.context=4 --steps=4 --save=DIR

The dry run compiles the program that spacetime train or sample runs, for TPUs
that do not exist here, with the same options, and reports memory, communication
and time. Exit code 0: it fits. 1: it does not, or a device gathers a complete
activation.

With --save the programs of `spacetime sample` are compiled for a model, a size
and settings, and saved; `spacetime sample --programs=DIR` with the same flags
loads them on the chips that they were compiled for. Without --topology these
are the devices of this machine.

The compiler is that of TPUs (pip install 'spacetime-video[tpu-compile]'); it
runs on a CPU in minutes.
"""

import dataclasses
import sys

import jax
from absl import flags
from ml_collections import config_flags

from spacetime import SettingError
from spacetime.cli import common, help_pages
from spacetime.cli import mesh as mesh_flags
from spacetime.config import parse
from spacetime.diffusion.settings import SamplingSettings
from spacetime.dryrun import programs, render
from spacetime.dryrun import report as report_lib
from spacetime.media import files
from spacetime.pipeline.request import Request
from spacetime.sharding import topology

# Settings of a request that shape the programs of sampling.
SAVED = (
  *('checkpoint', 'transformer', 'transformer_2', 'vae', 'text_encoder'),
  *(
    'image_encoder',
    'tokenizer',
    'frames',
    'size',
    'num',
    'batch_size',
    'preset',
  ),
)

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
_SAVE = flags.DEFINE_string(
  'save',
  None,
  'Folder for the compiled programs of sampling, with --program=sample. '
  'Example: programs/v6e-8.',
)
_JSON = flags.DEFINE_bool('json', False, 'Print the report as a line of JSON.')
_HLO = flags.DEFINE_string(
  'hlo', None, 'File for the text of the compiled program. Example: step.txt.'
)
common.define_flags(Request, names=SAVED)
common.define_flags(SamplingSettings, unset="the checkpoint's")
mesh_flags.define_flags()
help_pages.group('output', 'save')


def main() -> None:
  """Compiles a program, prints the report and sets the exit code."""
  if _SAVE.value is not None:
    save()
    return
  if _CONFIG.value is None or not _TOPOLOGY.value:
    raise ValueError('--config and --topology: expected both; see --help')
  refuse_saved_settings()
  hlo = files.as_path(_HLO.value) if _HLO.value else None
  if hlo is not None:
    files.check_writable(hlo.parent)
    if hlo.exists():
      raise SettingError('hlo', _HLO.value, 'a file that does not exist yet')
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
    dump=hlo and hlo.write_text,
  )
  if _JSON.value:
    config = config_flags.get_config_filename(flags.FLAGS['config'])
    print(render.as_json(report, slices, config=config, program=_PROGRAM.value))
  else:
    print(render.as_text(report, slices))
  if not report.passes:
    sys.exit(1)


def refuse_saved_settings() -> None:
  """Refuses the flags of `save`, which a dry run would ignore, and removes
  them, so that messages name the keys of the config instead.

  Raises:
    SettingError: one of them is set.
  """
  sampling = [field.name for field in dataclasses.fields(SamplingSettings)]
  axes = [f'mesh.{axis}' for axis in mesh_flags.HELP]
  names = [n for n in (*SAVED, *sampling, *axes) if n in flags.FLAGS]
  for name in names:
    if flags.FLAGS[name].present:
      raise SettingError(
        name,
        flags.FLAGS[name].value,
        'none without `save`',
        hint='a dry run takes sizes, sampler and mesh from its config, such as '
        '--config.mesh.context=2',
      )
  for name in names:
    delattr(flags.FLAGS, name)


def save() -> None:
  """Compiles and saves the programs of sampling, a line for each."""
  from spacetime import sharding
  from spacetime.pipeline import compile_ahead, pipeline, saved_programs

  if _PROGRAM.value != 'sample':
    raise SettingError('program', _PROGRAM.value, "'sample' with `save`")
  if _CONFIG.value is not None:
    raise SettingError(
      'config',
      str(_CONFIG.value.get('stage')),
      'none with `save`, which takes `checkpoint`',
    )
  for flag in (_SLICES, _JSON, _HLO):
    if flags.FLAGS[flag.name].present:
      raise SettingError(flag.name, flag.value, 'none with `save`')
  sampling = common.flag_values(SamplingSettings)
  sampling = {k: v for k, v in sampling.items() if v is not None}
  request = Request(**common.flag_values(Request), sampling=sampling, prompt='')
  axes = mesh_flags.value()
  if _TOPOLOGY.value:
    jax.config.update('jax_platforms', 'cpu')
    devices = topology.devices(topology.parse(_TOPOLOGY.value, slices=1))
    if axes is None:
      axes, devices = {'data': 1}, devices[:1]
    mesh = sharding.make_mesh(sharding.MeshConfig(**axes), devices=devices)
  else:
    mesh = sharding.as_mesh(axes)
  pipe = pipeline.from_request(request, mesh=mesh)
  store = saved_programs.Store(_SAVE.value, mesh, new=True)
  for saved in compile_ahead.save(request, pipe.engine, store):
    print(
      f'{saved.name}: {saved.size / 2**20:.1f} MiB, {saved.seconds:.1f} s',
      flush=True,
    )
