"""Refuses arrays with values that are not finite."""

import numpy as np

# Values per step, so that the masks fit the CPU's cache.
STEP = 1 << 18
OVERFLOW = 'float16 holds at most 65504: set `dtype` to bfloat16 or float32'
# Bits of the exponent, which are all set in infinities and NaN.
EXPONENTS = {'bfloat16': 0x7F80, 'float16': 0x7C00}


def all_finite(array) -> bool:
  """Whether all values of an array of floats are finite."""
  array = np.asarray(array)
  flat = array.reshape(-1) if array.flags.c_contiguous else array.ravel('K')
  mask = EXPONENTS.get(array.dtype.name)
  if mask is not None:
    flat = flat.view(np.uint16)
  elif array.dtype.kind != 'f':  # bytes, or float8, whose NaN are converted
    return True
  for first in range(0, flat.size, STEP):
    part = flat[first : first + STEP]
    if mask is not None:
      if ((part & mask) == mask).any():
        return False
    elif not np.isfinite(part).all():
      return False
  return True


def check(array, name: str, hint: str = '') -> None:
  """Raises a ValueError unless all values are finite.

  Args:
    array: any array; integers are accepted.
    name: what the values are, for the message.
    hint: what to do.
  """
  if not all_finite(array):
    raise ValueError(
      f'{name}: expected finite numbers, got NaN or infinity'
      + (f'; {hint}' if hint else '')
    )


def check_cast(array, name: str) -> None:
  """Raises a ValueError unless all values of an array to write are finite, as
  those that its dtype cannot hold are not."""
  array = np.asarray(array)
  check(array, name, OVERFLOW if array.dtype == np.float16 else '')
