"""Rounding error of a gradient that is summed over devices in bfloat16.

  python tests/benchmarks/gradient_rounding.py

A model of a ring that rounds at every hop, in numpy: independent normal parts,
one for each device, are added one after another. What hardware rounds within a
reduction is not known here.
"""

import ml_dtypes
import numpy as np

VALUES = 20_000


def error(devices: int, *, dtype) -> float:
  """Root mean square of the error, relative to that of the sum."""
  rng = np.random.default_rng(0)
  exact = np.zeros(VALUES)
  total = np.zeros(VALUES, dtype)
  for _ in range(devices):
    part = rng.normal(size=VALUES).astype(dtype)
    exact += part.astype(np.float64)
    total = (total.astype(np.float32) + part.astype(np.float32)).astype(dtype)
  difference = total.astype(np.float64) - exact
  return float(np.sqrt(np.mean(difference**2) / np.mean(exact**2)))


def main() -> None:
  """Prints a row for each number of devices."""
  print('devices  bfloat16  float32')
  for devices in (2, 16, 128, 512):
    errors = [error(devices, dtype=d) for d in (ml_dtypes.bfloat16, np.float32)]
    print(f'{devices:7d}  {errors[0]:8.2%}  {errors[1]:.1e}')


if __name__ == '__main__':
  main()
