"""Text -> tokens_BS by sentencepiece: 0 pads, 1 ends the text, 2 is unknown."""

import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Iterable

import numpy as np
import sentencepiece

from spacetime.media import files

PAD, END, UNKNOWN = 0, 1, 2
# 256 bytes, the three special tokens and some room for letters.
SMALLEST_VOCABULARY = 300


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """A sentencepiece model.

  Attributes:
    serialized: the model's bytes, which go with every checkpoint.

  Raises:
    ValueError: the bytes are no model, or pad is not 0 or </s> not 1.
  """

  serialized: bytes = dataclasses.field(repr=False)

  def __post_init__(self):
    try:
      if not self.serialized:
        raise TypeError('empty')
      pad, end = self._model.pad_id(), self._model.eos_id()
    except (RuntimeError, TypeError) as e:
      raise ValueError(
        f'tokenizer: {len(self.serialized)} bytes that are not a '
        'sentencepiece model; change --checkpoint or data.tokenizer'
      ) from e
    if (pad, end) != (PAD, END):
      raise ValueError(
        f'tokenizer: pad is {pad} and </s> is {end}; expected {PAD} and '
        f'{END}; train it with spacetime.data.tokenizer.train'
      )

  @functools.cached_property
  def _model(self) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=self.serialized)

  @classmethod
  def from_bytes(cls, serialized: bytes) -> 'Tokenizer':
    """The tokenizer whose `serialized` these bytes are."""
    return cls(serialized)

  @classmethod
  def load(cls, path: str | os.PathLike) -> 'Tokenizer':
    """Reads a sentencepiece model file."""
    path = pathlib.Path(path)
    if not path.is_file():
      raise ValueError(
        f'{path}: no such tokenizer; expected a sentencepiece model file; '
        'change --checkpoint or data.tokenizer'
      )
    return cls(path.read_bytes())

  @property
  def size(self) -> int:
    """Pieces in the vocabulary: every token is below it."""
    return self._model.get_piece_size()

  def encode(self, text: str, *, length: int) -> np.ndarray:
    """Tokens of one text, ended by </s> and padded with 0.

    Args:
      text: the prompt; '' gives a lone </s>, the unconditional text.
      length: S, of which one token is </s>.

    Returns:
      int32 (length,).

    Raises:
      ValueError: the text does not fit.
    """
    tokens_S, cut = self.encode_cut(text, length=length)
    if cut:
      shown = text if len(text) <= 60 else text[:57] + '...'
      raise ValueError(
        f'prompt has {length - 1 + cut} tokens; the model takes at most '
        f'{length - 1}; shorten --prompt (or the caption) or train with a '
        f'larger text.length: {shown!r}'
      )
    return tokens_S

  def encode_cut(self, text: str, *, length: int) -> tuple[np.ndarray, int]:
    """As encode, but the end of a text that does not fit is cut.

    Returns:
      int32 (length,), and how many tokens were cut.
    """
    pieces = self._model.encode(text)
    kept = pieces[: length - 1]
    tokens_S = np.full((length,), PAD, np.int32)
    tokens_S[: len(kept)] = kept
    tokens_S[len(kept)] = END
    return tokens_S, len(pieces) - len(kept)

  def decode(self, tokens_S: np.ndarray) -> str:
    """Text of the tokens before the first </s>."""
    tokens = [int(t) for t in tokens_S]
    if END in tokens:
      tokens = tokens[: tokens.index(END)]
    return self._model.decode([t for t in tokens if t != PAD])

  def check_prompt(self, prompt: str, *, length: int) -> str:
    """The prompt without outer blanks.

    Raises:
      ValueError: the prompt is empty, or has more tokens than fit.
    """
    prompt = prompt.strip()
    if not prompt:
      raise ValueError(
        'prompt is empty; expected a description of the video; set --prompt'
      )
    self.encode(prompt, length=length)
    return prompt


def train(
  captions: Iterable[str],
  *,
  vocab_size: int,
  path: str | os.PathLike | None = None,
) -> Tokenizer:
  """Trains a byte-pair model; the same captions give the same bytes.

  Byte pairs rather than a unigram model, since that takes no word for a piece
  which stands in only one word, so that captions of a small vocabulary come out
  twice as long. Case is folded, digits stand alone, and what was never seen
  falls back to bytes, so that every prompt has tokens.

  Args:
    captions: texts.
    vocab_size: at most so many pieces, 256 of which are bytes.
    path: where to write the model too.

  Returns:
    The tokenizer.

  Raises:
    ValueError: no captions, or a vocabulary with no room for bytes and letters.

  Source: Sennrich et al. 2016, arXiv 1508.07909, section 3.2.
  """
  if vocab_size < SMALLEST_VOCABULARY:
    raise ValueError(
      f'vocab_size={vocab_size}: expected at least {SMALLEST_VOCABULARY}, '
      'since 256 pieces are bytes; change text.vocab_size'
    )
  captions = [c for c in captions if c.strip()]
  if not captions:
    raise ValueError('captions: none given; expected at least one text')
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(captions),
      model_writer=model,
      model_type='bpe',
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      byte_fallback=True,
      split_digits=True,
      normalization_rule_name='nmt_nfkc_cf',
      character_coverage=1.0,
      pad_id=PAD,
      eos_id=END,
      unk_id=UNKNOWN,
      bos_id=-1,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as e:
    raise ValueError(
      f'vocab_size={vocab_size} does not suit these {len(captions)} captions; '
      f'change text.vocab_size ({e})'
    ) from e
  tokenizer = Tokenizer(model.getvalue())
  if path is not None:
    with files.atomic_write(pathlib.Path(path)) as temporary:
      temporary.write_bytes(tokenizer.serialized)
  return tokenizer
