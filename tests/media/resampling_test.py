"""Tests of resampling in time."""

import pytest

from spacetime.media.resampling import resample


def frames(times, length):
  return [(time, length, i) for i, time in enumerate(times)]


@pytest.mark.parametrize(
  ('times', 'fps', 'want'),
  [
    # GIF at 8 and 16 a second: hundredths.
    ([round(i * 12.5) / 100 for i in range(5)], 8, [0, 1, 2, 3, 4]),
    ([round(i * 6.25) / 100 for i in range(9)], 16, list(range(9))),
    # Matroska at 30000/1001, read at 30: milliseconds.
    ([round(i * 1001 / 30) / 1000 for i in range(9)], 30, list(range(9))),
    # Nearest of a faster one, not the last before.
    ([i / 30 for i in range(9)], 24, [0, 1, 2, 4, 5, 6, 7]),
    # Of a slower one, what a player shows.
    ([0, 0.1, 0.2], 30, [0, 0, 0, 1, 1, 1, 2, 2, 2]),
    ([0, 0.45, 0.5], 10, [0, 0, 0, 0, 0, 2]),
    ([0, 0.46, 0.9], 10, [0, 0, 0, 0, 0, 1, 1, 1, 1, 2]),
    # Half of a period at the end is a frame.
    ([0, 0.1, 0.2, 0.3, 0.4], 5, [0, 2, 4]),
    ([0], 4, [0]),
  ],
)
def test_nearest_within_half_a_period(times, fps, want):
  length = times[1] - times[0] if len(times) > 1 else 0.1
  length = min(length, 0.125)
  assert list(resample(frames(times, length), fps=fps)) == want


def test_reads_no_further_than_it_must():
  def source():
    yield from frames([0, 0.1, 0.2], 0.1)
    raise AssertionError('read on')

  assert list(resample(source(), fps=10, count=2)) == [0, 1]
  assert list(resample([], fps=10)) == []
  assert list(resample(frames([0], 0.1), fps=10, start=7)) == []
