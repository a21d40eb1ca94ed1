"""Files of prompts: every case is read as it was meant, or refused by name."""

import hypothesis
import pytest
from hypothesis import strategies

from spacetime.data import text_files
from spacetime.pipeline import prompts
from spacetime.pipeline.request import Request
from tests.corpus.tables_test import ENCODINGS, SETTINGS

TWO = ['snow', 'a red 3']
# Bytes of a file -> its prompts, or a part of the refusal.
CASES = {
  'lines': (b'snow\na red 3\n', TWO),
  'no last line end': (b'snow\na red 3', TWO),
  'Windows': (b'snow\r\na red 3\r\n', TWO),
  'an old Mac': (b'snow\ra red 3\r', TWO),
  'blank lines and blanks': (b'\n  snow \n\n\ta red 3\n \n', TWO),
  'a mark': ('snow\na red 3'.encode('utf-8-sig'), TWO),
  'UTF-16': ('snow\na red 3\n'.encode('utf-16'), TWO),
  'UTF-16, the other order': (
    b'\xfe\xff' + 'snow\r\na red 3'.encode('utf-16-be'),
    TWO,
  ),
  'UTF-32': ('snow\na red 3\n'.encode('utf-32'), TWO),
  'joined files, each with a mark': ('\ufeffsnow\n\ufeffa red 3'.encode(), TWO),
  'other planes': ('\U0001f680 \u65e5'.encode(), ['\U0001f680 \u65e5']),
  'separators within a line': (
    'snow\u2028or\x85rain\x0b'.encode(),
    ['snow\u2028or\x85rain'],
  ),
  'commas and quotes': (b'"snow", or rain\n', ['"snow", or rain']),
  'Latin-1': (b'caf\xe9\n', 'not UTF-8 text (byte 0xe9 at 3)'),
  'UTF-16 without its mark': ('snow'.encode('utf-16-le'), 'zero bytes'),
  'half of UTF-16': (b'\xff\xfea', 'not UTF-16 text'),
  'a binary file': (bytes(range(256)), 'not UTF-8 text'),
  'empty': (b'', 'a prompt on each line'),
  'a mark alone': (b'\xef\xbb\xbf', 'a prompt on each line'),
  'blank': (b' \n\t\r\n', 'a prompt on each line'),
  'nothing to be seen': ('\u200b\n\u200e \n'.encode(), 'a prompt on each line'),
}  # fmt: skip


def read(path):
  return prompts.read(Request(prompts_file=str(path)))


@pytest.mark.parametrize('name', CASES)
def test_prompts_are_right_or_refused(name, tmp_path):
  data, outcome = CASES[name]
  path = tmp_path / 'prompts.txt'
  path.write_bytes(data)
  if isinstance(outcome, list):
    assert read(path) == outcome
    return
  with pytest.raises(ValueError) as e:
    read(path)
  assert outcome in str(e.value) and str(path) in str(e.value)


@pytest.mark.parametrize(
  'prompt',
  ['', ' \n', '\u200b\u2060', '\udcff', ['snow', '\u200e'], ['snow', None], []],
)
def test_a_prompt_is_a_text_that_can_be_seen(prompt):
  with pytest.raises(ValueError, match='expected text that describes the vid'):
    prompts.read(Request(prompt=prompt))


@pytest.mark.parametrize('suffix', ['.json', '.jsonl', '.csv', '.tsv', '.CSV'])
def test_a_table_is_no_file_of_prompts(suffix, tmp_path):
  path = tmp_path / f'prompts{suffix}'
  path.write_text('prompt\nsnow\n')
  with pytest.raises(ValueError, match='a text with a prompt on each line'):
    read(path)


@SETTINGS
@hypothesis.given(
  lines=strategies.lists(
    strategies.text(
      strategies.characters(
        exclude_categories=('Cs',), exclude_characters='\0\r\n\ufeff'
      )
    ),
    max_size=5,
  ),
  encoding=strategies.sampled_from(ENCODINGS),
  end=strategies.sampled_from(['\n', '\r\n', '\r']),
)
def test_random_prompts(tmp_path, lines, encoding, end):
  path = tmp_path / 'prompts.txt'
  path.write_bytes(end.join(lines).encode(encoding))
  expected = [line.strip() for line in lines if not text_files.is_blank(line)]
  if expected:
    assert read(path) == expected
  else:
    with pytest.raises(ValueError, match='a prompt on each line'):
      read(path)
