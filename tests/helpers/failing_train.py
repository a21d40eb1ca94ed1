"""spacetime train, of which the data of one process fail.

  python -m tests.helpers.failing_train PROCESS BATCH --config=... ...

Process PROCESS cannot read its batch number BATCH, from 0.
"""

import sys

import jax

from spacetime import __main__ as spacetime_main
from spacetime.data import unreadable


def fail(process: int, number: int) -> None:
  """Lets a batch of a process fail."""
  take, taken = unreadable.Report.take, []

  def failing(self, batch):
    if jax.process_index() == process and len(taken) == number:
      raise ValueError(f'batch {number} cannot be read')
    taken.append(number)
    return take(self, batch)

  unreadable.Report.take = failing


if __name__ == '__main__':
  fail(int(sys.argv[1]), int(sys.argv[2]))
  sys.argv[1:3] = ['train']
  spacetime_main.main()
