"""Clips that cannot be read: skipped, counted and reported, within a limit.

Which clips cannot be read is a property of the files: a clip that fails is
replaced by the next one that can be read, so that a position in the data means
the same clip at every start, on every process.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from absl import logging

from spacetime.data import clip_list

# Key of 1 + the index of the clip that a record replaces; 0 of none.
KEY = 'unreadable'


class UnreadableClipError(ValueError):
  """A file is damaged, too short or gone: the clip can be skipped."""


class Records(Protocol):
  """Random access to records; see data/pipeline.py."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Mapping[str, Any]: ...


def most(count: int, share: float) -> int:
  """How many of so many clips may be unreadable: a share of them, and at least
  one unless the share is 0."""
  return max(math.floor(share * count), 1) if share else 0


def over_limit(
  reason: str, *, bad: int, count: int, share: float
) -> ValueError:
  """The error for more unreadable clips than the limit."""
  return ValueError(
    f'{reason}; {bad} of {count} clips cannot be read: expected at most '
    f'{most(count, share)} (`max_unreadable`={share:g})'
  )


def read(
  call: Callable[[int], Mapping[str, Any]], index: int, count: int
) -> dict[str, Any]:
  """A record, or the next one that can be read, with KEY.

  Args:
    call: index -> record.
    index: of the record.
    count: number of records.

  Raises:
    ValueError: none can be read.
  """
  for offset in range(count):
    try:
      record = call((index + offset) % count)
    except UnreadableClipError as e:
      error = e
      continue
    return {**record, KEY: np.int32(index + 1 if offset else 0)}
  raise ValueError(f'{error}; none of the {count} clips can be read') from error


class Replaced:
  """Records of which unreadable ones are replaced; see `read`."""

  def __init__(self, records: Records):
    self._records = records

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return read(self._records.__getitem__, index, len(self._records))


class Report:
  """Counts the clips that were replaced in batches, and warns of each once.

  Args:
    records: the training split, which tells why a clip cannot be read.
    share: largest share of unreadable clips, see `most`.

  Attributes:
    clips: times that each unreadable clip was replaced, by its index.
  """

  def __init__(self, records: Records, *, share: float):
    self._records, self._share = records, share
    self.clips: dict[int, int] = {}

  def take(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch without KEY, whose clips are counted.

    Raises:
      ValueError: more clips than the limit cannot be read.
    """
    batch = dict(batch)
    marks = batch.pop(KEY, None)
    for mark in () if marks is None else np.ravel(marks):
      if mark:
        self._add(int(mark) - 1)
    return batch

  def _add(self, index: int) -> None:
    new = index not in self.clips
    self.clips[index] = self.clips.get(index, 0) + 1
    if not new:
      return
    reason, count = self._reason(index), len(self._records)
    logging.warning('%s: skipped, the next clip takes its turns', reason)
    if len(self.clips) > most(count, self._share):
      raise over_limit(
        reason, bad=len(self.clips), count=count, share=self._share
      )

  def _reason(self, index: int) -> str:
    try:
      self._records[index]
    except UnreadableClipError as e:
      return str(e)
    return f'clip {index} could not be read once'

  @property
  def summary(self) -> str:
    """How many clips were skipped, in one line; '' of none."""
    if not self.clips:
      return ''
    times = sum(self.clips.values())
    reasons = [self._reason(index) for index in sorted(self.clips)]
    return (
      f'{len(self.clips)} of {len(self._records)} clips could not be read and '
      f'were skipped, {times} times: {clip_list.shown(reasons)}'
    )
