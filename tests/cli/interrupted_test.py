"""The end of a command by a signal."""

import subprocess
import sys


def test_a_compilation_that_is_interrupted_does_not_crash():
  """Without `leave`, the interpreter crashes with exit code 139."""
  ran = subprocess.run(
    [sys.executable, 'tests/helpers/interrupted.py'],
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert ran.returncode == 143, ran.stderr[-3000:]
  assert ran.stderr.splitlines()[-1] == 'error: interrupted'
