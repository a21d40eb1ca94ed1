"""The command line: overview, help, flags' names, refusals."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from spacetime import SettingError
from spacetime import __main__ as spacetime_main
from spacetime.cli import common, flag_names, help_pages
from spacetime.pipeline import aliases
from tests.helpers import commands

ROOT = pathlib.Path(__file__).parents[2]
TINY = '--config=digits_pixels:tiny'
# Runs a program and prints its CPU seconds and whether it imported JAX.
MEASURED = """
import resource, sys
sys.argv = {argv}
try:
  {program}
except SystemExit as e:
  assert not e.code, e.code
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, 'jax' in sys.modules)
"""


def measured(program, *argv):
  """CPU seconds of a program beyond an empty one's, and its output."""
  text = MEASURED.format(program=program, argv=['spacetime', *argv])
  ran = subprocess.run(
    [sys.executable, '-c', text],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  *_, last = ran.stdout.splitlines()
  seconds, with_jax = last.split()
  return float(seconds), with_jax == 'True', ran.stdout


def test_import_is_quick_and_without_jax():
  seconds, with_jax, _ = measured('import spacetime')
  assert seconds <= 0.15 and not with_jax


def test_help_of_sample_is_quick_and_without_jax():
  program = 'from spacetime.__main__ import main; main()'
  seconds, with_jax, text = measured(program, 'sample', '--help')
  assert seconds <= 0.6 and not with_jax
  assert '--num_inference_steps' in text


def test_overview_lists_the_commands(capsys, monkeypatch):
  for argv in ((), ('--help',), ('-h',), ('help',)):
    monkeypatch.setattr(sys, 'argv', ['spacetime', *argv])
    spacetime_main.main()
    out = capsys.readouterr().out
    for name, summary in spacetime_main.COMMANDS.items():
      assert f'{name} ' in out and summary in out
  monkeypatch.setattr(sys, 'argv', ['spacetime', 'smaple'])
  with pytest.raises(SystemExit, match='2'):
    spacetime_main.main()
  assert 'did you mean sample?' in capsys.readouterr().err


@pytest.mark.parametrize('command', spacetime_main.COMMANDS)
def test_help_of_a_command(command):
  for word in ('--help', '-h', 'help'):
    result = commands.run(command, word).ok()
  module = sys.modules[f'spacetime.cli.{command}']
  assert result.out.startswith(module.__doc__.strip())
  assert f'spacetime {command} --' in result.out
  for name, flag in flag_names.visible().items():
    assert f'--{name}=' in result.out or f'--[no]{name}\n' in result.out
    assert flag.help, name
  for hidden in ('--verbosity', '--logtostderr', '--pdb', '--undefok'):
    assert hidden not in result.out


def test_help_groups_flags_with_defaults_and_examples():
  lines = commands.run('sample', '--help').ok().out.splitlines()
  groups = [line[:-1] for line in lines if line and line[-1] == ':']
  groups = [group for group in groups if group in help_pages.GROUPS]
  others = 'options', 'scenes'  # of other commands
  assert groups == [g for g in help_pages.GROUPS if g not in others]
  text = ' '.join(line.strip() for line in lines)
  assert "Default: the checkpoint's." in text
  assert 'Also: --num_inference_steps.' in text and 'Example: --' in text
  assert 'Also: --width and --height.' in text


@pytest.mark.parametrize(
  ('arguments', 'own'),
  [
    (['--num_inference_steps=3'], ['--steps=3']),
    (['--num_inference_steps', '3'], ['--steps=3']),
    (['--guidance_scale=3', '--num_frames=9'], ['--guidance=3', '--frames=9']),
    (['--height=32', '--width=64', '--seed=1'], ['--seed=1', '--size=64x32']),
    (['--prompt', '--steps', '--seed=1'], ['--prompt=--steps', '--seed=1']),
    (['--', '--whatever'], ['--', '--whatever']),
  ],
)
def test_names_of_diffusers_are_accepted(arguments, own):
  commands.load('sample')
  assert flag_names.own_names(arguments) == own


def test_commands_with_a_setting_accept_its_other_names():
  for command in spacetime_main.COMMANDS:
    commands.load(command)
    for name, own in aliases.ALIASES.items():
      if own in flags.FLAGS and name not in flags.FLAGS:
        assert flag_names.own_names([f'--{name}=1']) == [f'--{own}=1']


@pytest.mark.parametrize(
  ('flag', 'text'),
  [
    (
      '--guidance_scal=3',
      'did you mean --guidance (also spelled --guidance_sc',
    ),
    ('--stepz=3', 'did you mean --steps?'),
    ('--num-frames=3', 'did you mean --frames (also spelled --num_frames)?'),
    ('--lora-2=3', 'did you mean --lora_2?'),
    ('--xyzzy=3', 'unknown flag --xyzzy; see --help'),
    ('--height=32', '--height=32: expected --width too'),
    ('--steps=x', '--steps=x: expected a whole number'),
    ('--guidance=x', '--guidance=x: expected a number'),
    ('--interval=x', '--interval=x'),
    ('--steps', '--steps: expected a value'),
    ('prompt', "arguments ['prompt']: expected flags only"),
  ],
)
def test_refuses_in_one_line(flag, text):
  assert text in commands.run('sample', flag).refusal()


@pytest.mark.parametrize(
  ('arguments', 'text'),
  [
    (['--config=digit'], 'did you mean digits?'),
    (['--config=digits:tini'], "'tini': expected cpu"),
    (
      [TINY, '--config.train.stepz=3'],
      'config.train.steps?',
    ),
    ([TINY, '--config.train.steps.x=3'], 'is a value'),
    (
      [TINY, '--config.train.steps=x'],
      'a whole number',
    ),
  ],
)
def test_refuses_a_config_in_one_line(arguments, text):
  assert text in commands.run('train', '--workdir=x', *arguments).refusal()


def test_keys_that_a_config_leaves_out_can_be_set():
  arguments = (
    TINY,
    '--config.optimizer.moments=bfloat16',
  )
  commands.parse('train', *arguments, '--config.train.accumulate=2')
  config = flags.FLAGS.config
  assert config.optimizer.moments == 'bfloat16'
  assert config.train.accumulate == 2


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a command."""

  knots: int = dataclasses.field(
    default=3, metadata={'help': 'Number of knots.', 'group': 'length'}
  )
  ratio: float | None = dataclasses.field(
    default=None, metadata={'help': 'Ratio.', 'group': 'solver'}
  )
  bounds: tuple[float, float] = dataclasses.field(
    default=(0.0, 1.0), metadata={'help': 'Bounds.', 'group': 'solver'}
  )
  hidden: str = ''


def test_flags_of_a_dataclass():
  names = ('knots', 'ratio', 'bounds')
  try:
    common.define_flags(Settings)
    flags.FLAGS(['x', '--ratio=0.5', '--bounds=(0.25, 0.5)'])
    values = common.flag_values(Settings)
    assert values == {'knots': 3, 'ratio': 0.5, 'bounds': (0.25, 0.5)}
    assert 'hidden' not in flags.FLAGS
  finally:
    for name in names:
      delattr(flags.FLAGS, name)
  try:
    common.define_flags(Settings, unset="the model's")
    flags.FLAGS(['x'])
    assert set(common.flag_values(Settings).values()) == {None}
  finally:
    for name in names:
      delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
  'text, numbers',
  [('', ()), ('()', ()), ('3', (3.0,)), ('(3,)', (3.0,)), ('2, 3', (2.0, 3.0))],
)
def test_numbers(text, numbers):
  assert common.NumbersParser().parse(text) == numbers


def test_keywords_of_pipelines_may_have_diffusers_names():
  renamed = aliases.renamed
  assert renamed({'num_inference_steps': 3, 'seed': 1}) == {
    'steps': 3,
    'seed': 1,
  }
  assert renamed({'width': 64, 'height': 32}) == {'size': (64, 32)}
  for settings, text in (
    ({'steps': 3, 'num_inference_steps': 3}, '`steps` once'),
    ({'width': 64}, 'width=64: expected `height` too'),
    ({'width': 64, 'height': 32, 'size': '64x32'}, 'not both'),
  ):
    with pytest.raises(SettingError, match=text):
      renamed(settings)
