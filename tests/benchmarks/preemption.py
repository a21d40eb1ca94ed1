"""SIGTERM at a random moment of a slow run: how soon the save begins.

  PYTHONPATH=. python tests/benchmarks/preemption.py --times=20 --seconds=2

The real training loop with steps of so many seconds and log_every=10.
"""

import argparse

from tests.helpers import slow_run


def main() -> None:
  """Prints a line for each run, and how many saved within two steps."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--times', type=int, default=20)
  parser.add_argument('--seconds', type=float, default=2.0)
  parser.add_argument('--log_every', type=int, default=10)
  arguments = parser.parse_args()
  runs = slow_run.trials(
    arguments.times, arguments.seconds, log_every=arguments.log_every
  )
  for run in runs:
    print(
      f'step {run.saved[1]}: the save began {run.saved[0] - run.signalled:.1f} '
      f's and {run.steps_until_save} steps after the signal',
      flush=True,
    )
  within = sum(run.steps_until_save <= 2 for run in runs)
  print(f'{within} of {len(runs)} within two steps')


if __name__ == '__main__':
  main()
