"""The scripts: they parse, and their set-up runs once and is then skipped."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = [*sorted(ROOT.glob('launch/*.sh')), ROOT / '.ci/run']


def bash(program, *, cwd=ROOT, **environment):
  return subprocess.run(
    ['bash', '-c', program],
    cwd=cwd,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=120,
  )


def executable(path, text):
  path.write_text('#!/usr/bin/env bash\n' + text)
  path.chmod(0o755)
  return path


@pytest.fixture
def clone(tmp_path):
  """A clone whose pip only logs its arguments."""
  shutil.copytree(ROOT / 'launch', tmp_path / 'launch')
  for name in ('setup.py', 'pyproject.toml'):
    shutil.copy(ROOT / name, tmp_path)
  (tmp_path / 'spacetime').mkdir()
  shutil.copy(ROOT / 'spacetime/__init__.py', tmp_path / 'spacetime')
  tools = tmp_path / '.venv/bin'
  tools.mkdir(parents=True)
  (tools / 'activate').write_text('PATH="$PWD/.venv/bin:$PATH"\n')
  executable(tools / 'python', 'echo "python $*" >> log\n')
  executable(tools / 'ruff', 'echo "ruff $*" >> log\n')
  return tmp_path


def logged(clone):
  path = clone / 'log'
  lines = path.read_text().splitlines() if path.exists() else []
  path.unlink(missing_ok=True)
  return [line for line in lines if '-c import pip' not in line]


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_may_be_run(script):
  assert bash(f'bash -n {script}').returncode == 0
  assert os.access(script, os.X_OK)
  assert script.read_text().startswith('#!/usr/bin/env bash\n')


def test_demo_installs_once_and_passes_its_arguments_on(clone):
  assert bash('bash launch/demo.sh', cwd=clone).returncode == 0
  install, sample = logged(clone)
  assert '-m pip install' in install and install.endswith('--editable .')
  assert sample.startswith('python -m spacetime sample --prompt=a ')
  assert sample.endswith('--out=demo.mp4 --overwrite')
  bash('bash launch/demo.sh "a blue 3 rises" --seed=4', cwd=clone)
  assert logged(clone) == [
    'python -m spacetime sample --prompt=a blue 3 rises --out=demo.mp4 '
    '--overwrite --seed=4'
  ]
  bash('bash launch/demo.sh --steps=9', cwd=clone)
  (sample,) = logged(clone)
  assert 'to the right --out=demo.mp4 --overwrite --steps=9' in sample


def test_demo_installs_again_when_the_package_changed(clone):
  bash('bash launch/demo.sh', cwd=clone)
  assert len(logged(clone)) == 2
  with (clone / 'setup.py').open('a') as f:
    f.write('# changed\n')
  bash('bash launch/demo.sh', cwd=clone)
  assert len(logged(clone)) == 2


def test_a_failed_install_is_tried_again(clone):
  executable(clone / '.venv/bin/python', '[[ "$*" != *install* ]] || exit 3\n')
  for _ in range(2):
    assert bash('bash launch/demo.sh', cwd=clone).returncode != 0
  assert not list((clone / '.venv').glob('.installed*'))


def test_test_lints_and_runs_pytest(clone):
  done = bash('bash launch/test.sh --quick tests/x_test.py -x', cwd=clone)
  assert done.returncode == 0, done.stderr
  install, check, form, tests = logged(clone)
  assert install.endswith('--editable .[test]')
  assert (check, form) == ('ruff check .', 'ruff format --check .')
  assert tests == (
    'python -m pytest -n 2 --dist worksteal -m not parity and not e2e '
    'and not slow tests/x_test.py -x'
  )
  bash('bash launch/test.sh', cwd=clone)
  assert logged(clone)[-1] == 'python -m pytest -n 2 --dist worksteal'


def test_ci_runs_the_tests(clone):
  (clone / '.ci').mkdir()
  shutil.copy(ROOT / '.ci/run', clone / '.ci/run')
  executable(clone / 'launch/test.sh', 'echo "$PWD $*"; exit 5\n')
  done = bash(f'{clone}/.ci/run --quick', cwd='/')
  assert (done.returncode, done.stdout) == (5, f'{clone} --quick\n')


def test_an_old_python_is_refused(tmp_path):
  old = executable(
    tmp_path / 'python3',
    '[[ "$1" == --version ]] && echo Python 3.9.2 || exit 1\n',
  )
  for name in ('python', 'python3.11', 'python3.12', 'python3.13'):
    shutil.copy(old, tmp_path / name)
  program = 'source launch/setup_venv.sh; setup_venv'
  venv = str(tmp_path / 'venv')
  path = f'{tmp_path}:/usr/bin:/bin'
  done = bash(program, PATH=path, VENV=venv)
  assert done.returncode == 1
  assert 'No Python 3.11 or newer found: the newest here is Python 3.9' in (
    done.stderr
  )
  named = bash(program, PATH=path, VENV=venv, PYTHON=str(old))
  assert f'newer found at PYTHON={old}' in named.stderr
  assert not pathlib.Path(venv).exists()


def test_find_python_takes_the_named_one():
  done = bash('source launch/setup_venv.sh; find_python', PYTHON=sys.executable)
  assert done.stdout.strip() == sys.executable


def test_when_a_process_fails_the_others_are_ended():
  program = (
    'import os, sys, time; '
    'print("first", os.environ["JAX_NUM_PROCESSES"], flush=True); '
    'sys.exit(3) if os.environ["JAX_PROCESS_ID"] == "1" else time.sleep(100)'
  )
  ran = subprocess.run(
    [
      *(sys.executable, 'launch/local_pod.py', '--processes=2', '--devices=1'),
      *('--grace=1', '--', sys.executable, '-c', program),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert ran.returncode == 3
  assert 'process 1 ended with code 3; the others have 1 s to end' in ran.stderr
  assert '[1] first 2' in ran.stderr
