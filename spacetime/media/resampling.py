"""Frames at the times of another rate."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Frame = TypeVar('Frame')

# Containers round times: Matroska to milliseconds.
_ROUNDING = 1e-3


def resample(
  frames: Iterable[tuple[float, float, Frame]],
  *,
  fps: float,
  start: float = 0.0,
  count: int | None = None,
) -> Iterator[Frame]:
  """Yields the frames at start, start + 1 / fps, start + 2 / fps ...

  The frame nearest in time is chosen if it is less than half a period of the
  result away; else the one that a player would show then, which is the last
  one before. Of two at the same distance, the earlier. Thus each frame comes
  once at the file's own rate, although GIF rounds times to hundredths and
  Matroska to thousandths of a second, and a frame that stands is repeated. The
  result is as long as the file from `start` on, to within half a period.

  Holds three frames at a time, and reads no further than it must.

  Args:
    frames: time and duration in seconds, and the frame, in order of time.
    fps: frames per second of the result.
    start: seconds.
    count: number of frames, fewer if the file ends; None goes to the end.
  """
  half, end, shown, chosen, index = 0.5 / fps, 0.0, None, None, 0
  rounding = _rounding(fps)
  for time, length, frame in frames:
    while shown is not None and index != count:
      at = start + index / fps
      if chosen is None:
        if time - at < min(at - shown[0], half) - rounding:
          break
        chosen = shown[1]
      if index and time < at + half - rounding:
        break  # the file may end before
      yield chosen
      chosen, index = None, index + 1
    if index == count:
      return
    shown, end = (time, frame), max(end, time + length)
  if shown is None or start >= end:
    return
  last = max(1, length_at(end - start, fps=fps))
  while index < last and index != count:
    yield shown[1] if chosen is None else chosen
    chosen, index = None, index + 1


def length_at(seconds: float, *, fps: float) -> int:
  """Frames of a duration at a rate: the nearest number, the larger of two."""
  return int((seconds + _rounding(fps)) * fps + 0.5)


def repeats(rate: float, *, fps: float) -> bool:
  """Whether frames of a rate stand still for a time at another: more than one
  of twenty comes twice."""
  return rate < 0.95 * fps


def _rounding(fps: float) -> float:
  """Seconds by which times may be off: less than half of a short period."""
  return min(_ROUNDING, 0.25 / fps)
