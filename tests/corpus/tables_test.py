"""Captions of folders: every case of the corpus, and random tables."""

import csv
import io
import json
import os
import pathlib
import re

import hypothesis
import pytest
from hypothesis import strategies

from spacetime.data import caption_files, text_files
from tests.corpus import tables

# A run for a release sets 2000.
EXAMPLES = int(os.environ.get('SPACETIME_TEST_EXAMPLES', '40'))
SETTINGS = hypothesis.settings(
  max_examples=EXAMPLES,
  derandomize=True,
  deadline=None,
  database=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize('name', tables.CASES)
def test_captions_are_right_or_refused(name, tmp_path):
  case = tables.CASES[name]
  folder = tmp_path / 'clips'
  folder.mkdir()
  case.write(folder)
  if case.captions is None:
    with pytest.raises(ValueError) as e:
      caption_files.read(folder)
    for part in case.refusal:
      assert part in str(e.value)
    return
  result = caption_files.read(folder)
  captions = {
    str(path.relative_to(folder)): text
    for path, text in result.by_video.items()
  }
  assert captions == case.captions
  assert list(captions) == sorted(captions)
  assert len(result.notes) == len(case.notes), result.notes
  for note, part in zip(result.notes, case.notes, strict=True):
    assert part in note


def test_outside_of_the_folder(tmp_path):
  folder = tmp_path / 'clips'
  folder.mkdir()
  for path in (tmp_path / 'out.mp4', folder / 'in.mp4'):
    path.write_bytes(b'')
  names = ['../out.mp4', str(folder / 'in.mp4')]
  rows = [json.dumps({'file': name, 'caption': name}) for name in names]
  (folder / 'captions.jsonl').write_text('\n'.join(rows))
  assert caption_files.read(folder).by_video == {
    tmp_path / 'out.mp4': names[0],
    folder / 'in.mp4': names[1],
  }


# -- random tables -------------------------------------------------------------

# What breaks readers: quotes, separators, line ends, marks, other planes.
CAPTIONS = strategies.lists(
  strategies.text(
    strategies.one_of(
      strategies.sampled_from('",;\t\n\r \'\\\u2028\x85\ufeffa\xe9\U0001f680'),
      strategies.characters(
        exclude_categories=('Cs',), exclude_characters='\0'
      ),
    ),
    max_size=12,
  ),
  min_size=1,
  max_size=4,
)
ENCODINGS = ('utf-8', 'utf-8-sig', 'utf-16', 'utf-32')


def plain(caption: str) -> str:
  """A caption as a reader of texts has it."""
  return caption.replace('\ufeff', '').strip()


def outcome(folder: pathlib.Path, name: str, data: bytes, count: int):
  """Captions of clips 0.mp4, 1.mp4, ... with a table, or the refusal."""
  for path in folder.iterdir():
    path.unlink()
  for i in range(count):
    (folder / f'{i}.mp4').write_bytes(b'')
  (folder / name).write_bytes(data)
  try:
    return [*caption_files.read(folder).by_video.values()]
  except ValueError as e:
    assert str(folder) in str(e)
    return str(e)


def expected(captions: list[str]):
  """The plain captions; None where one is empty or a missing value, which is
  refused."""
  texts = [plain(caption) for caption in captions]
  refused = [
    text_files.is_blank(text) or text.casefold() in caption_files.MISSING
    for text in texts
  ]
  return None if any(refused) else texts


@SETTINGS
@hypothesis.given(
  captions=CAPTIONS,
  encoding=strategies.sampled_from(ENCODINGS),
  separator=strategies.sampled_from(',;\t'),
  end=strategies.sampled_from(['\n', '\r\n']),
  quoting=strategies.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
  last=strategies.booleans(),
)
def test_separated_tables(
  tmp_path, captions, encoding, separator, end, quoting, last
):
  buffer = io.StringIO()
  writer = csv.writer(
    buffer, delimiter=separator, lineterminator=end, quoting=quoting
  )
  # Writers quote no leading blank, which readers may skip, and Python's no \r,
  # which ends a line.
  captions = [caption.lstrip(' ') for caption in captions]
  if quoting == csv.QUOTE_MINIMAL:
    captions = [caption.replace('\r', '\n') for caption in captions]
  writer.writerow(['file', 'caption'])
  writer.writerows([f'{i}.mp4', text] for i, text in enumerate(captions))
  text = buffer.getvalue()
  text = text if last else text.removesuffix(end)
  hypothesis.assume(not text.startswith('\ufeff'))
  result = outcome(
    tmp_path, 'metadata.csv', text.encode(encoding), len(captions)
  )
  if expected(captions) is None:
    assert re.search('is empty|fields|write it, or remove', result), result
  else:
    assert result == expected(captions)


@SETTINGS
@hypothesis.given(
  captions=CAPTIONS,
  encoding=strategies.sampled_from(ENCODINGS),
  end=strategies.sampled_from(['\n', '\r\n', '\n\n']),
  escaped=strategies.booleans(),
  lines=strategies.booleans(),
)
def test_json_tables(tmp_path, captions, encoding, end, escaped, lines):
  rows = [
    {'file': f'{i}.mp4', 'caption': text} for i, text in enumerate(captions)
  ]
  texts = [json.dumps(row, ensure_ascii=escaped) for row in rows]
  name, text = 'captions.jsonl', end.join(texts)
  if not lines:
    name, text = 'captions.json', f'[{f",{end}".join(texts)}]'
  result = outcome(tmp_path, name, text.encode(encoding), len(captions))
  if expected(captions) is None:
    assert 'is empty' in result or 'write it, or remove' in result
  else:
    assert result == expected(captions)


@SETTINGS
@hypothesis.given(
  captions=CAPTIONS,
  garbage=strategies.binary(max_size=8),
  position=strategies.integers(0, 60),
  name=strategies.sampled_from(caption_files.TABLES),
)
def test_damaged_tables_are_refused_by_name(
  tmp_path, captions, garbage, position, name
):
  rows = [
    {'file': f'{i}.mp4', 'caption': text} for i, text in enumerate(captions)
  ]
  text = '\n'.join(json.dumps(row) for row in rows)
  if name.endswith(('csv', 'tsv')):
    separator = ',' if name.endswith('csv') else '\t'
    lines = [('file', 'caption'), *(tuple(row.values()) for row in rows)]
    text = '\n'.join(separator.join(line) for line in lines)
  data = text.encode()
  data = data[:position] + garbage + data[position:]
  result = outcome(tmp_path, name, data, len(captions))
  assert isinstance(result, (str, list))  # no other exception


@SETTINGS
@hypothesis.given(
  text=strategies.text(
    strategies.characters(exclude_categories=('Cs',), exclude_characters='\0')
  ),
  encoding=strategies.sampled_from(ENCODINGS),
)
def test_text_files(tmp_path, text, encoding):
  path = tmp_path / 'a.txt'
  path.write_bytes(text.encode(encoding))
  hypothesis.assume(encoding != 'utf-8' or not text.startswith('\ufeff'))
  assert text_files.read(path) == text.replace('\ufeff', '')
