"""`spacetime sample` whose compilation is interrupted by SIGTERM.

python tests/helpers/interrupted.py
"""

import os
import signal
import sys
import threading

import jax

from spacetime import __main__ as spacetime_main
from spacetime.cli import sample


def draw(key):
  """A program that takes some seconds to compile."""
  keys = [jax.random.fold_in(key, i) for i in range(20)]
  return [
    jax.random.truncated_normal(key, -2, 2, (64, 64 + i))
    for i, key in enumerate(keys)
  ]


def main() -> None:
  """The command's own program, in place of a model's."""
  lowered = jax.jit(draw).lower(jax.random.key(0))
  pause = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
  pause.start()
  while True:
    lowered.compile()


if __name__ == '__main__':
  sample.main = main
  sys.argv = ['spacetime', 'sample', '--compilation_cache=']
  spacetime_main.main()
