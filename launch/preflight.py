"""Checks a launch before anything is bought: the command, config, mesh, memory.

It also finds what the workers need from this machine: files of the experiment,
and folders of clips, latents and weights, which are copied to the bucket of the
work directory.
"""

import dataclasses
import difflib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from launch import pods
from spacetime import SettingError
from spacetime.checkpoint import hub, locate
from spacetime.cli import config_file
from spacetime.config import experiment_files, networks, parse
from spacetime.config import mesh as mesh_lib
from spacetime.config.experiment import Experiment
from spacetime.data import packing
from spacetime.sharding import topology

ROOT = pathlib.Path(__file__).parents[1]
# Flags of train that a launch passes on, beside those that it sets itself.
PASSED = ('checkpoint', 'compilation_cache', 'profile', 'verbosity', 'watchdog')
# Sources of clips that are folders which somebody has filled.
FILLED = ('folder', 'cache')


@dataclasses.dataclass(frozen=True)
class Upload:
  """A folder of this machine that the workers need.

  Attributes:
    name: the setting that names it.
    folder: the folder.
    target: its URL, which the workers are given in its place.
  """

  name: str
  folder: str
  target: str

  @property
  def command(self) -> list[str]:
    """The command that copies it; files that are there already stay."""
    copy = 'rsync' if os.path.isdir(self.folder) else 'cp'
    recursive = ['--recursive'] if copy == 'rsync' else []
    return ['gcloud', 'storage', copy, *recursive, self.folder, self.target]


@dataclasses.dataclass(frozen=True)
class Launch:
  """A checked launch.

  Attributes:
    config: name of the experiment below the checkout, as workers read it.
    overrides: arguments of train.
    uploads: what is copied to the bucket first.
  """

  config: str
  overrides: tuple[str, ...]
  uploads: tuple[Upload, ...] = ()

  def command(self) -> list[str]:
    """Command of every worker."""
    return pods.train_command(self.config, self.overrides)

  def copy_inputs(self) -> None:
    """Copies what the workers need to the bucket.

    Raises:
      ValueError: a folder cannot be copied.
    """
    for upload in self.uploads:
      code, _ = pods.call(upload.command)
      if code:
        raise ValueError(
          f'{upload.name}={upload.folder}: could not be copied to '
          f'{upload.target}'
        )


def check(slice_type: pods.Slice, overrides: Sequence[str]) -> Launch:
  """Checks everything that can be checked here.

  Args:
    slice_type: the slice that will be bought.
    overrides: arguments of train.

  Raises:
    ValueError: a flag, config or key that does not exist, a mesh that does not
      divide the slices, a program that does not fit, or a path that workers
      cannot read.
  """
  overrides = _with_slices(overrides)
  config = config_name(pods.CONFIG.value)
  checkpoint = _flags(overrides).get('checkpoint')
  try:
    experiment = read(config, overrides)
    check_mesh(experiment, slice_type.topology)
  except SettingError as e:
    raise ValueError(_as_overrides(e)) from e
  launch = inputs(config, overrides, experiment, checkpoint)
  section = experiment.autoencoder
  if experiment.stage != 'diffusion' or section.kind == 'weights':
    print(
      'memory is not checked: a dry run has no autoencoder with weights',
      file=sys.stderr,
    )
  elif pods.CHECK_MEMORY.value:
    check_memory(config, overrides, slice_type.topology)
  return launch


def config_name(name: str) -> str:
  """The experiment's file below the checkout, with its argument.

  Raises:
    SettingError: there is no such file, or it is not shipped.
  """
  file, colon, argument = experiment_files.find(name).partition(':')
  path = pathlib.Path(file).absolute()
  if not path.is_relative_to(ROOT):
    raise SettingError(
      'config', name, f'an experiment below {ROOT}, which is what is shipped'
    )
  return f'{path.relative_to(ROOT)}{colon}{argument}'


def read(config: str, overrides: Sequence[str]) -> Experiment:
  """The experiment that workers will parse.

  Raises:
    ValueError: a flag or a key that does not exist, or a bad value.
  """
  _flags(overrides)
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, '', flag_values=values)
  keys = [o for o in overrides if o.lstrip('-').startswith('config.')]
  arguments = config_file.resolve(['train', f'--config={config}', *keys])
  before, sys.argv = sys.argv, arguments.argv
  try:
    with warnings.catch_warnings():  # of how the library imports a file
      warnings.simplefilter('ignore', DeprecationWarning)
      values(arguments.argv)
  except (flags.Error, AttributeError, KeyError, TypeError) as e:
    raise ValueError(f'--config: {str(e).splitlines()[0]}') from e
  finally:
    sys.argv = before
  parsed = values['config'].value
  arguments.add_to(parsed)
  return parse.experiment(parsed.copy_and_resolve_references())


def check_mesh(experiment: Experiment, slices: topology.Topology) -> None:
  """Checks that the mesh divides the slices, the batch and the model.

  Raises:
    SettingError: it does not.
  """
  experiment.require('mesh', 'data', 'train')
  devices = slices.devices * pods.SLICES.value
  kind = slices.chip.kind
  mesh = mesh_lib.planned(
    experiment, devices=devices, platform='tpu', device_kind=kind
  )
  data = experiment.data
  rows = isinstance(data.packing, packing.SequencePacking)
  if experiment.stage != 'diffusion' or rows:
    return  # no clip of one size that the mesh has to divide
  nets = networks.networks(experiment)
  for size in sorted({data.size, tuple(data.crop or data.size), *data.shapes}):
    tokens = networks.clip_geometry(data, nets, size).tokens
    mesh_lib.check_model(nets.dit.config, tokens, mesh)


def check_memory(
  config: str, overrides: Sequence[str], slices: topology.Topology
) -> None:
  """Compiles the training step for the slices, which takes minutes.

  Raises:
    ValueError: it does not fit, or the compiler is not installed.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise SettingError(
      'check_memory',
      True,
      'the compiler of TPUs, which is not installed',
      hint="pip install -e '.[tpu-compile]', or --nocheck_memory",
    )
  keys = [o for o in overrides if o.lstrip('-').startswith('config.')]
  command = [
    *(sys.executable, '-m', 'spacetime', 'compile', f'--config={config}'),
    *keys,
    f'--topology={slices.raw}',
    f'--num_slices={pods.SLICES.value}',
  ]
  print('compiling the training step for its memory', file=sys.stderr)
  ran = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=False
  )
  lines = [line.strip() for line in ran.stdout.splitlines() if line.strip()]
  if ran.returncode == 1:
    verdict = next((x for x in lines if 'does not fit' in x), lines[-1])
    raise ValueError(f'--type={pods.TYPE.value}: {verdict}')
  if ran.returncode:
    errors = [x for x in ran.stderr.splitlines() if x.startswith('error: ')]
    reason = (errors or ran.stderr.splitlines() or ['no output'])[-1]
    raise ValueError(
      f'the training step does not compile: {reason.removeprefix("error: ")}'
    )
  shown = ('total', 'limit', 'expected')
  print(*(x for x in lines if x.startswith(shown)), sep='\n', file=sys.stderr)


def inputs(
  config: str,
  overrides: Sequence[str],
  experiment: Experiment,
  checkpoint: str | None,
) -> Launch:
  """Replaces folders of this machine by URLs to which they are copied.

  Raises:
    ValueError: a path that is neither here nor a URL.
  """
  settings = {}
  if checkpoint:
    settings['checkpoint'] = checkpoint
  if experiment.data.name in FILLED:
    settings['config.data.dir'] = experiment.data.dir
  section = experiment.autoencoder
  if section is not None and section.weights:
    settings['config.autoencoder.weights'] = section.weights
  uploads, replaced = [], {}
  for name, value in settings.items():
    if '://' in value or name != 'config.data.dir' and _is_named(value):
      continue
    if not os.path.exists(value):
      raise ValueError(
        f'--{name}={value}: expected a folder of this machine, which is copied '
        'to the bucket, or gs://BUCKET/FOLDER'
      )
    base = pods.WORKDIR.value.rstrip('/') + '-inputs'
    target = f'{base}/{os.path.basename(os.path.abspath(value))}'
    uploads.append(Upload(f'--{name}', value, target))
    replaced[name] = target
  _check_distinct(uploads)
  kept = [o for o in overrides if _name(o) not in replaced]
  kept += [f'--{name}={target}' for name, target in replaced.items()]
  return Launch(config, tuple(kept), tuple(uploads))


def _as_overrides(error: SettingError) -> str:
  """An error of a setting, spelled as the override behind `--`."""
  text = f'`{error.name}`={error.value}: expected {error.expected}'
  if error.hint and 'cpu_devices' not in error.hint:
    text += f'; {error.hint}'
  return re.sub(r'`(\w+\.[\w.]+)`', r'--config.\1', text)


def _check_distinct(uploads: Sequence[Upload]) -> None:
  """Two folders of one name would be mixed in the bucket."""
  folders: dict[str, str] = {}
  for upload in uploads:
    other = folders.setdefault(upload.target, os.path.abspath(upload.folder))
    if other != os.path.abspath(upload.folder):
      raise ValueError(
        f'{upload.name}={upload.folder}: expected another name than that of '
        f'{other}, since both are copied to {upload.target}'
      )


def _is_named(value: str) -> bool:
  """Whether workers find a model by its name: bundled, or on the hub."""
  if os.path.exists(value):
    return False
  return (locate.ASSETS / value).is_dir() or hub.is_name(value)


def _with_slices(overrides: Sequence[str]) -> list[str]:
  """Overrides with the number of slices, of which the mesh has to know."""
  key, count = 'config.mesh.num_slices', pods.SLICES.value
  values = _flags(overrides)
  if key in values:
    if values[key] != str(count):
      raise ValueError(f'--{key}={values[key]}: expected --slices={count} too')
    return list(overrides)
  return [*overrides, *([f'--{key}={count}'] if count > 1 else [])]


def _flags(overrides: Sequence[str]) -> dict[str, str]:
  """Values of train's arguments by name.

  Raises:
    ValueError: an argument that is no flag, or not one that is passed on.
  """
  values = {}
  for argument in overrides:
    name, equals, value = argument.partition('=')
    if not argument.startswith('-') or not (equals or 'config.' in name):
      raise ValueError(
        f'{argument!r}: expected --name=value of spacetime train behind --'
      )
    name = _name(argument)
    bare = name.removeprefix('no')
    if name not in PASSED and not bare.startswith('config.'):
      near = difflib.get_close_matches(name, PASSED, n=1)
      hint = f'; did you mean --{near[0]}?' if near else ''
      raise ValueError(
        f'--{name}: expected one of {PASSED} or --config.KEY behind --{hint}'
      )
    values[name] = value
  return values


def _name(argument: str) -> str:
  return argument.partition('=')[0].lstrip('-')
