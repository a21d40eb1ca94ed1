"""Text -> tokens_BS by sentencepiece: 0 pads, 1 ends the text, 2 is unknown."""

import dataclasses
import functools
import io
import os
from collections.abc import Iterable

import numpy as np
import sentencepiece

from spacetime import SettingError
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
        'sentencepiece model'
      ) from e
    if (pad, end) != (PAD, END):
      raise ValueError(
        f'tokenizer: pad is {pad} and </s> is {end}; expected {PAD} and {END}'
      )

  @functools.cached_property
  def _model(self) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=self.serialized)

  @classmethod
  def from_bytes(cls, serialized: bytes) -> 'Tokenizer':
    """The tokenizer of a serialized sentencepiece model."""
    return cls(serialized)

  @classmethod
  def load(cls, path: str | os.PathLike) -> 'Tokenizer':
    """Reads a sentencepiece model file."""
    path = files.as_path(path)
    if not files.exists(path) or path.is_dir():
      raise ValueError(f'{path}: no such file; expected a sentencepiece model')
    return cls(path.read_bytes())

  @property
  def size(self) -> int:
    """Number of pieces in the vocabulary; every token is below it."""
    return self._model.get_piece_size()

  def encode(self, text: str, *, length: int) -> np.ndarray:
    """Tokenizes a text, ends it with </s> and pads it with 0.

    Args:
      text: a prompt; '' gives a lone </s>, the unconditional text.
      length: number of tokens with </s>, S.

    Returns:
      int32 (length,).

    Raises:
      ValueError: the text has too many tokens.
    """
    tokens_S, cut = self.encode_cut(text, length=length)
    if cut:
      shown = text if len(text) <= 60 else text[:57] + '...'
      raise ValueError(
        f'prompt has {length - 1 + cut} tokens; the model takes at most '
        f'{length - 1} (text.length - 1): {shown!r}'
      )
    return tokens_S

  def encode_cut(self, text: str, *, length: int) -> tuple[np.ndarray, int]:
    """Tokenizes as encode, but truncates a text that is too long.

    Returns:
      int32 (length,), and the number of tokens that were cut.
    """
    tokens = self._model.encode(text)
    count = min(len(tokens), length - 1)
    tokens_S = np.full((length,), PAD, np.int32)
    tokens_S[:count] = tokens[:count]
    tokens_S[count] = END
    return tokens_S, len(tokens) - count

  def decode(self, tokens_S: np.ndarray) -> str:
    """Decodes the tokens before the first </s>."""
    tokens = [int(t) for t in tokens_S]
    if END in tokens:
      tokens = tokens[: tokens.index(END)]
    return self._model.decode([t for t in tokens if t != PAD])

  def check_prompt(self, prompt: str, *, length: int) -> str:
    """Strips a prompt and checks it.

    Raises:
      SettingError: the prompt is empty.
      ValueError: the prompt has too many tokens.
    """
    prompt = prompt.strip()
    if not prompt:
      raise SettingError('prompt', prompt, 'a description of the video')
    self.encode(prompt, length=length)
    return prompt


def train(
  captions: Iterable[str],
  *,
  vocab_size: int,
  path: str | os.PathLike | None = None,
) -> Tokenizer:
  """Trains a byte-pair tokenizer; equal captions give equal bytes.

  A unigram model would split every word that has no shared pieces, so that
  captions of a small vocabulary have twice the tokens. Case is folded, digits
  are separate pieces, and unseen characters fall back to bytes, so that every
  prompt can be encoded.

  Args:
    captions: texts.
    vocab_size: most pieces, 256 of which are bytes.
    path: file to write the model to.

  Returns:
    The tokenizer.

  Raises:
    ValueError: no captions, or a vocabulary with no room for bytes and letters.

  Source: Sennrich et al. 2016, arXiv 1508.07909, section 3.2.
  """
  if vocab_size < SMALLEST_VOCABULARY:
    raise SettingError(
      'text.vocab_size',
      vocab_size,
      f'{SMALLEST_VOCABULARY} or more, since 256 pieces are bytes',
    )
  captions = [c for c in captions if c.strip()]
  if not captions:
    raise ValueError('no captions; expected at least one text')
  tokenizer = Tokenizer(_trained(captions, vocab_size))
  if path is not None:
    with files.atomic_write(files.as_path(path)) as temporary:
      temporary.write_bytes(tokenizer.serialized)
  return tokenizer


def _trained(captions: list[str], vocab_size: int) -> bytes:
  """The serialized model of captions.

  Raises:
    SettingError: a vocabulary that does not suit the captions.
  """
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
    raise SettingError(
      'text.vocab_size',
      vocab_size,
      f'a size that suits the {len(captions)} captions ({e})',
    ) from e
  return model.getvalue()
