"""The protocol of a data source, and the splits that it opens."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from spacetime.data.clip_list import ClipList
from spacetime.data.settings import DataConfig

# Words with inner hyphens and apostrophes, numbers, and other signs than
# punctuation, such as an emoji.
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*|\d+|[^\w\s.,;:!?()\"'`/-]")
CAPTIONS = 5000  # captions that train a tokenizer, of a large split


class Records(Protocol):
  """Random access to the records of a split; see data/pipeline.py."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Mapping[str, Any]: ...

  def caption(self, index: int) -> str:
    """The caption of a record, without its video where that is possible."""

  def clip_size(self, index: int) -> tuple[int, int, int]:
    """(frames, height, width) of a record, without its video; of sources with
    HAS_MIXED_SIZES alone."""


@dataclasses.dataclass(frozen=True)
class Splits:
  """The records of a source.

  Attributes:
    train: records to train on.
    held_out: records to evaluate on.
    captions: captions of training records, at most CAPTIONS of a large split;
      none if they are embedded.
    identity: fingerprint of the list of clips.
    tokenizer: sentencepiece model of embedded captions.
    empty_SY: embedding of the empty caption, if captions are embedded.
    clips: the list of clips as it is now, where it may change between two
      starts of a run; None where the config alone decides it.
  """

  train: Records
  held_out: Records
  captions: list[str]
  identity: str
  tokenizer: bytes | None = None
  empty_SY: np.ndarray | None = None
  clips: ClipList | None = None


class Source(Protocol):
  """A module of data/sources/.

  Attributes:
    HAS_LATENTS: whether records hold latents instead of video.
    HAS_MIXED_SIZES: whether clips can be drawn from `data.mixed`.
    HAS_FILES: whether clips are files of the user, some of which may be
      unreadable.
  """

  HAS_LATENTS: bool
  HAS_MIXED_SIZES: bool
  HAS_FILES: bool

  def open_splits(
    self,
    data: DataConfig,
    *,
    seed: int,
    embedded: bool = False,
    recorded: ClipList | None = None,
  ) -> Splits:
    """Opens the splits, preparing them first if they are missing.

    Args:
      data: section of the config.
      seed: seed of rendered clips.
      embedded: whether captions are used as stored embeddings, not as text.
      recorded: clips whose indices are to stay as they are; None takes the
        clips that are there.

    Raises:
      ValueError: missing or unusable data.
    """

  def stage_reader(self, data: DataConfig, records: Records) -> Callable:
    """Returns (rng, kind, (frames, height, width)) -> record, which draws a
    clip of a training stage (data/stages.py); not of sources with latents."""

  def prompt_grammar(self, data: DataConfig) -> Callable[[str], str] | None:
    """Completes prompts to captions of the source; None if it cannot."""

  def prompt_vocabulary(self, data: DataConfig) -> 'Vocabulary | None':
    """Words of a closed world's captions; None of open ones."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """All words of the captions of a closed world.

  Attributes:
    subject: what captions describe, a plural.
    example: a caption.
    words: the words, in lower case.
  """

  subject: str
  example: str
  words: frozenset[str]

  def known(self, text: str) -> bool:
    """Whether a text has any word of the captions."""
    return any(
      self.words >= set(word.split('-')) for word in _WORD.findall(text.lower())
    )

  def unknown(self, text: str) -> list[str]:
    """The words of a text that no caption has, each once."""
    return [
      word
      for word in dict.fromkeys(_WORD.findall(text.lower()))
      if word not in self.words and not self.words >= set(word.split('-'))
    ]


@dataclasses.dataclass(frozen=True)
class Subset:
  """Some records of a split."""

  records: Records
  indices: Sequence[int]

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    return self.records[self.indices[index]]

  def caption(self, index: int) -> str:
    """The caption of a record."""
    return self.records.caption(self.indices[index])


def first_captions(records: Records) -> list[str]:
  """The captions of the first records, at most CAPTIONS."""
  return [records.caption(i) for i in range(min(CAPTIONS, len(records)))]
