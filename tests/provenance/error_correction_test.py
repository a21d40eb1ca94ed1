"""The code of the watermark: its distance, its decoder, its gain."""

import numpy as np

from spacetime.provenance import error_correction

BITS = 48


def test_decode_inverts_encode_despite_errors():
  random = np.random.default_rng(0)
  right = 0
  for _ in range(20):
    bits = random.integers(0, 2, BITS)
    signs = error_correction.encode(bits)
    assert signs.shape == (4 * BITS,) and set(signs) == {-1.0, 1.0}
    # At this noise one sign of six is wrong.
    soft = signs + random.normal(size=len(signs))
    assert 0.05 < np.mean(soft * signs < 0) < 0.3
    right += np.array_equal(error_correction.decode(soft)[0], bits)
  assert right >= 19


def test_messages_differ_in_many_signs():
  """A single other bit changes 24 signs: the code's free distance."""
  zero = error_correction.encode(np.zeros(BITS, int))
  for i in range(BITS):
    bits = np.zeros(BITS, int)
    bits[i] = 1
    assert (error_correction.encode(bits) != zero).sum() >= 20
  weights = []
  for pattern in range(1, 256):
    bits = np.zeros(BITS, int)
    bits[:8] = [pattern >> i & 1 for i in range(8)]
    weights.append((error_correction.encode(bits) != zero).sum())
  assert min(weights) == 24
