"""Prompts of published models: cleaned and truncated as in diffusers."""

import html
import json
import pathlib
import re

import ftfy
import hypothesis
import numpy as np
import pytest
from absl import logging
from hypothesis import strategies as st

from spacetime.checkpoint.interop import tokenizers
from spacetime.data.tokenizer import END, PAD, Tokenizer
from spacetime.pipeline import prompts
from tests.checkpoint.interop import tokenizers_test

ROOT = pathlib.Path(__file__).parents[2]
# What is given, and what the model reads.
CLEANED = {
  '  a red\t3 \n\n moves\u3000left ': 'a red 3 moves left',
  'schÃ¶n â€œquotedâ€\x9d': 'schön "quoted"',
  'a &lt; b &amp;amp; c': 'a < b & c',
  'a &amp;amp;amp; b': 'a & b',
  # ftfy leaves entities alone where there is a tag.
  '<b> &amp;lt; &amp;amp;': '<b> < &',
  'ﬁne ﬂow': 'fine flow',
  'ＦＵＬＬ width': 'FULL width',
  'bell\x07 \x1b[31mred\x1b[0m': 'bell red',
  '\ufeffmark': 'mark',
  '\r\n\x85\u2028': '…',
  '\r\n\u2028': '',
  '': '',
}
NASTY = (
  *CLEANED,
  '&#28;&#x1f;&#133; &nbsp;&nbsp;&notanentity; &#xD800;',
  '&amp;lt;script&amp;gt; &amp;#28;x',
  'âœ” No problems, cafÃ©, Ð\x9fÑ€Ð¸Ð²ÐµÑ‚',
  'a\u200bb\u2060c \u202eright\u202c',
  '\ud83d\ude00 lone \ud83d',
  'ÃƒÂ© twice, \x93win\x94',
  '日本\u3000語 \U0001f600\U0001f1e9\U0001f1ea',
  ' '.join(map(chr, range(0x300))),
  ' '.join(f'&#{n};' for n in range(0x180)),
  'x' + 'x'.join(chr(n) for n in range(0x1C, 0x21)) + 'x',
  '<b>bold</b> &lt;i&gt;',
)


def test_cleans():
  for raw, expected in CLEANED.items():
    assert prompts.clean(raw) == expected, repr(raw)


@hypothesis.given(st.text(st.characters(max_codepoint=0x7F), max_size=40))
def test_plain_text_is_cleaned_as_any_other(text):
  """ftfy is left out where it would change nothing."""
  unescaped = html.unescape(html.unescape(ftfy.fix_text(text)))
  assert prompts.clean(text) == ' '.join(unescaped.split())


@pytest.mark.parity
def test_cleans_as_diffusers_does():
  from diffusers.pipelines.wan import pipeline_wan

  assert pipeline_wan.is_ftfy_available()
  for text in NASTY:
    assert prompts.clean(text) == pipeline_wan.prompt_clean(text), repr(text)


def serialized():
  return tokenizers_test.trained(byte_fallback=False)


def test_long_prompts_are_truncated_with_a_warning(caplog):
  tokenizer = Tokenizer.from_bytes(serialized())
  text = 'snow ' * 20 + 'a red 3 ' * 20
  full = tokenizer.encode(text, length=200)
  count = list(full).index(END)
  logging.use_absl_handler()
  with caplog.at_level('WARNING'):
    cut = prompts.cut_tokens(tokenizer, text, length=11)
  assert cut.dtype == np.int32 and cut[-1] == END
  np.testing.assert_array_equal(cut[:-1], full[:10])
  message = caplog.records[0].getMessage()
  assert (
    f'has {count} tokens, of which the last {count - 10} are cut' in message
  )
  assert 'at most 10' in message and len(caplog.records) == 1
  fits = prompts.cut_tokens(tokenizer, text, length=count + 1)
  assert fits[-1] == END and len(caplog.records) == 1
  assert prompts.cut_tokens(tokenizer, text, length=200)[-1] == PAD
  with pytest.raises(ValueError, match=f'has {count} tokens; .* at most 10 '):
    tokenizer.encode(text, length=11)


@pytest.mark.parity
def test_cut_as_transformers_does(tmp_path):
  import transformers

  (tmp_path / 'spiece.model').write_bytes(serialized())
  config = {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = tokenizers.read(tmp_path, vocabulary=40)
  for count in (1, 100, 127, 128, 129, 400):
    text = 'a red 3 moves left ' * count
    target = theirs(
      text, padding='max_length', max_length=512, truncation=True
    ).input_ids
    np.testing.assert_array_equal(
      prompts.cut_tokens(ours, prompts.clean(text), length=512),
      target,
    )


def test_the_package_asks_for_ftfy():
  requirements = (ROOT / 'setup.py').read_text().split('extras_require')[0]
  assert re.search(r"'ftfy>=6", requirements.split('install_requires')[1])
