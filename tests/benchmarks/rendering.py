"""Clips of the digits world rendered a second, by one thread.

  python tests/benchmarks/rendering.py [--clips=200]

The limit is NumPy's memory traffic: a clip of 17x64x64 pixels is 209 kB. The
fifteen-minute run needs some 50 clips a second.
"""

import argparse
import statistics
import time

import numpy as np

from spacetime.data.digits import render, scenes
from spacetime.data.digits import world as world_lib

ROUNDS = 5


def main() -> None:
  """Prints the median rate of some rounds."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--clips', type=int, default=200)
  clips = parser.parse_args().clips
  world, rng = world_lib.World(), np.random.default_rng(0)
  rates = []
  for _ in range(ROUNDS):
    start = time.perf_counter()
    for _ in range(clips):
      scene = scenes.sample_scene(rng, world=world, split='train')
      render.clip(scene, world)
    rates.append(clips / (time.perf_counter() - start))
  print(f'{statistics.median(rates):.0f} clips a second')


if __name__ == '__main__':
  main()
