"""Fenced blocks of the documentation, and a shell to run them in."""

import contextlib
import dataclasses
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import time

from tests.helpers import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ('README.md', 'CONTRIBUTING.md', *sorted(
  str(path.relative_to(ROOT)) for path in (ROOT / 'docs').glob('*.md')
))  # fmt: skip
# Languages of blocks: run; run by Python; only parsed, since they need hardware
# or weights.
RUN, PYTHON, PARSED = 'bash', 'python', 'sh'
_FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
# Stands in for the interpreter that makes a virtual environment: the new one
# has the packages of the tests, and its pip records what it installs.
_PYTHON = """#!/usr/bin/env bash
if [[ "$1 $2" == '-m venv' ]]; then
  mkdir -p "$3/bin"
  cp "{tools}"/* "$3/bin/"
  echo "PATH=\\"$PWD/$3/bin:\\$PATH\\"" > "$3/bin/activate"
  exit
fi
exec {python} "$@"
"""
_PIP = """#!/usr/bin/env bash
[[ "$1" == install ]] || exit 1
echo "$*" >> "$PIP_LOG"
"""
# The console script, without the seconds that imports take: see warm.py.
_SPACETIME = """#!/usr/bin/env bash
exec {python} -S -E {warm} call {socket} "$@"
"""


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block of a page."""

  page: str
  language: str
  text: str


def blocks(page: str) -> list[Block]:
  """The blocks of a page, in order."""
  text = (ROOT / page).read_text()
  return [Block(page, *match) for match in _FENCE.findall(text)]


def commands(block: Block) -> list[str]:
  """Lines of a shell block, continuations joined, comments left out."""
  lines = block.text.replace('\\\n', ' ').splitlines()
  return [line for line in lines if line.strip() and line[0] != '#']


def links(text: str) -> list[str]:
  """Targets of links and pictures, those of code left out."""
  return re.findall(r'\]\(([^)\s]+)\)', _FENCE.sub('', text))


def checkout(folder: pathlib.Path) -> pathlib.Path:
  """A clone: a copy of the files that git tracks or would track, tracked."""
  listing = subprocess.run(
    ['git', 'ls-files', '-co', '--exclude-standard', '-z'],
    cwd=ROOT,
    capture_output=True,
    check=True,
    text=True,
  )
  for name in filter(None, listing.stdout.split('\0')):
    if (ROOT / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(ROOT / name, folder / name)
  for command in (['git', 'init', '--quiet'], ['git', 'add', '--all']):
    subprocess.run(command, cwd=folder, check=True)
  return folder


@dataclasses.dataclass(frozen=True)
class Shell:
  """A fresh shell for each program, with stand-ins for python3 and pip.

  Attributes:
    tools: folder of the stand-ins.
    environment: variables of every program.
  """

  tools: pathlib.Path
  environment: dict[str, str]

  def run(self, program: str, *, cwd: pathlib.Path):
    """Runs a program in a fresh bash, as a user with this home folder."""
    return subprocess.run(
      ['bash', '--noprofile', '--norc', '-euo', 'pipefail', '-c', program],
      cwd=cwd,
      env=self.environment
      | {
        'HOME': str(cwd),
        'PYTHONPATH': str(cwd),
        'PIP_LOG': str(cwd.parent / 'pip.log'),
      },
      capture_output=True,
      text=True,
      timeout=1200,
    )


@contextlib.contextmanager
def shell(folder: pathlib.Path, **environment):
  """Yields a Shell whose `spacetime` is forked from a warm process.

  Args:
    folder: an empty folder.
    environment: more variables of every program.
  """
  names = {
    'python': sys.executable,
    'tools': folder / 'tools',
    'warm': ROOT / 'tests/helpers/warm.py',
    'socket': folder / 'socket',
  }
  names['tools'].mkdir()
  for name, text in {
    'python3': _PYTHON,
    'python': _PYTHON,
    'pip': _PIP,
    'spacetime': _SPACETIME,
  }.items():
    path = names['tools'] / name
    path.write_text(text.format_map(names))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
  environment = {
    'HOME': str(folder),
    'LANG': 'C.UTF-8',
    'PATH': f'{names["tools"]}:/usr/bin:/bin',
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': xla_flags.COMPILE_QUICKLY,
    **environment,
  }
  command = [names['python'], names['warm'], 'serve', names['socket']]
  server = subprocess.Popen(command, cwd=folder, env=environment)
  try:
    until = time.monotonic() + 300
    while not names['socket'].exists():
      assert server.poll() is None and time.monotonic() < until
      time.sleep(0.05)
    yield Shell(names['tools'], environment)
  finally:
    server.kill()
    server.wait()
