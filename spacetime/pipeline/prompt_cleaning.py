"""Prompts as the published pipelines read them: cleaned, cut to length."""

import html

import ftfy
import numpy as np
from absl import logging

from spacetime.data.tokenizer import Tokenizer


def clean(text: str) -> str:
  """The text with broken characters mended, entities read, single blanks.

  Source: diffusers 0.42.1, prompt_clean of the Wan pipelines.
  """
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return ' '.join(text.split())


def tokens(tokenizer: Tokenizer, text: str, *, length: int) -> np.ndarray:
  """Tokens of a cleaned text, int32 (length,); what is over is cut, and told.

  The published models were trained on texts that were cut like this.
  """
  tokens_S, cut = tokenizer.encode_cut(text, length=length)
  if cut:
    logging.warning(
      'prompt has %d tokens, of which the last %d are cut: the model takes at '
      'most %d: %r',
      length - 1 + cut,
      cut,
      length - 1,
      text[:57] + '...',
    )
  return tokens_S
