"""Error correction of short messages: a tail-biting convolutional code.

Rate 1/4, constraint length 9: each bit of the message becomes four signs, which
depend on it and on the eight bits before it. The encoder begins in the state
that it ends in, so that no signs are spent on a tail.

Source of the generators: K. Larsen, Short convolutional codes with maximal free
  distance for rates 1/2, 1/3, and 1/4 (1973). Decoding: H. Ma and J. Wolf, On
  tail biting convolutional codes (1986), by repeating the circle.
"""

import functools

import numpy as np

GENERATORS = (0o463, 0o535, 0o733, 0o745)
RATE = len(GENERATORS)  # signs of each bit
_MEMORY = 8  # bits
_STATES = 1 << _MEMORY  # the last bits, the newest is the most significant
_LAPS = 3
BEST = 4  # messages that are returned


@functools.cache
def _transitions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Signs (states, bit, RATE); of each state, its predecessors (states, 2) and
  the signs between them (states, 2, RATE)."""
  register_SU = (np.arange(2)[None] << _MEMORY) | np.arange(_STATES)[:, None]
  parity_SUR = np.stack(
    [np.bitwise_count(register_SU & g) & 1 for g in GENERATORS], -1
  )
  sign_SUR = parity_SUR.astype(np.float32) * 2 - 1
  state_S = np.arange(_STATES)
  before_S2 = ((state_S[:, None] << 1) & (_STATES - 1)) | np.arange(2)
  bit_S = state_S >> (_MEMORY - 1)
  return sign_SUR, before_S2, sign_SUR[before_S2, bit_S[:, None]]


def encode(bits_N: np.ndarray) -> np.ndarray:
  """Signs (RATE * N,) of bits, 0 or 1, of which there are eight or more."""
  sign_SUR, _, _ = _transitions()
  state = 0
  for bit in bits_N[-_MEMORY:]:
    state = (state | int(bit) << _MEMORY) >> 1
  result = []
  for bit in bits_N:
    result.append(sign_SUR[state, int(bit)])
    state = (state | int(bit) << _MEMORY) >> 1
  return np.concatenate(result)


def decode(soft: np.ndarray) -> np.ndarray:
  """The likeliest messages (BEST, N) by soft signs (RATE * N,), best first.

  The Viterbi algorithm goes round the circle several times; the last lap is
  traced back from each of the best final states.
  """
  _, before_S2, sign_S2R = _transitions()
  soft_NR = soft.reshape(-1, RATE)
  count = len(soft_NR)
  state_S = np.arange(_STATES)
  metric_S, choices = np.zeros(_STATES), []
  for _ in range(_LAPS):
    for soft_R in soft_NR:
      metric_S2 = metric_S[before_S2] + sign_S2R @ soft_R
      choice_S = metric_S2.argmax(1)
      metric_S = metric_S2[state_S, choice_S]
      choices.append(choice_S)
  messages = []
  for state in np.argsort(-metric_S)[:BEST]:
    bits = []
    for choice_S in choices[: -count - 1 : -1]:
      bits.append(int(state) >> (_MEMORY - 1))
      state = before_S2[state, choice_S[state]]
    messages.append(bits[::-1])
  return np.array(messages)
