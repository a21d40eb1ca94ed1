"""Captions of a folder of videos: a text beside each video, or one table.

Every row is read as it was meant, or refused by its file and line; whatever is
left out is counted.
"""

import collections
import csv
import dataclasses
import io
import json
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from spacetime.data import text_files

SUFFIXES = (
  *('.mp4', '.webm', '.mkv', '.mov', '.m4v', '.avi', '.gif', '.mpg'),
  *('.mpeg', '.m2v', '.ts', '.mts', '.m2ts', '.vob', '.3gp', '.3g2'),
  *('.flv', '.f4v', '.wmv', '.asf', '.ogv', '.mxf'),
)
FORMATS = ('.jsonl', '.json', '.csv', '.tsv')
TABLES = tuple(
  f'{stem}{suffix}' for suffix in FORMATS for stem in ('captions', 'metadata')
)
# Names of the two columns; the second are those of Hugging Face's folders.
FILE, CAPTION = ('file', 'file_name'), ('caption', 'text')
SEPARATORS = {'.csv': ',;\t', '.tsv': '\t'}
TEXT = '.txt'
# What pandas, Python and spreadsheets write for a missing text.
MISSING = ('nan', 'none', 'null', 'n/a', '#n/a', '<na>')


@dataclasses.dataclass(frozen=True)
class Captions:
  """The captioned videos of a folder.

  Attributes:
    by_video: caption of each video, sorted by name.
    notes: a line on each kind of file that is left out, with a count.
  """

  by_video: dict[Any, str]
  notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a table.

  Attributes:
    label: place in the table, such as 'line 3'.
    file: name of the video.
    caption: caption of the video.
    unread: names of its other columns.
  """

  label: str
  file: str
  caption: str
  unread: tuple[str, ...] = ()


def read(folder) -> Captions:
  """The captions of a folder and its subfolders; links are followed.

  Args:
    folder: a pathlib.Path or an epath.Path.

  Raises:
    ValueError: no folder, no videos, videos without a caption, or a caption
      that cannot be read as it was meant.
  """
  files = list_files(folder)
  table = find_table(folder)
  if table is not None:
    return _from_table(folder, table, files)
  videos = require_videos(folder, files)
  bare = [path for path in videos if not text_path(path).is_file()]
  if bare:
    raise ValueError(
      f'{len(bare)} of {len(videos)} videos have no caption, such as '
      f'{bare[0]}; expected {text_path(bare[0]).name} beside it, or one of '
      f'{", ".join(TABLES)} in {folder}'
    )
  captions = {path: _text(text_path(path)) for path in videos}
  empty = [
    text_path(path)
    for path, caption in captions.items()
    if _is_missing(caption)
  ]
  if empty:
    raise ValueError(
      f'{len(empty)} of {len(videos)} captions are empty, such as {empty[0]}; '
      f'write them, or remove these videos ({MISSING} are no captions)'
    )
  texts = collections.Counter(map(text_path, videos))
  shared = [path for path, count in texts.items() if count > 1]
  lone = [p for p in files if p.suffix == TEXT and p not in texts]
  return Captions(
    captions,
    _notes(
      (shared, 'texts are shared by videos of one name'),
      (lone, 'texts have no video beside them and are left out'),
      *_left_out(folder, files, videos),
    ),
  )


def text_path(video):
  """The text that holds a video's caption."""
  return video.with_suffix(TEXT)


def find_table(folder):
  """The table of a folder; None if there is none.

  Raises:
    ValueError: several tables.
  """
  tables = [folder / name for name in TABLES if (folder / name).is_file()]
  if len(tables) > 1:
    raise ValueError(
      f'{folder} has {len(tables)} tables of captions, '
      f'{" and ".join(table.name for table in tables)}: expected one'
    )
  return tables[0] if tables else None


def find_videos(folder) -> list:
  """The videos of a folder and its subfolders, sorted by name.

  Raises:
    ValueError: no folder, no videos in it, or a video that is no file.
  """
  return require_videos(folder, list_files(folder))


def list_files(folder) -> list:
  """All files of a folder and its subfolders, sorted by name.

  Raises:
    ValueError: no folder.
  """
  if not folder.is_dir():
    raise ValueError(f'{folder}: no such folder')
  return sorted(_walk(folder, ()))


def _walk(folder, above: tuple) -> Iterator:
  here = folder.resolve()
  if here in above:  # a link to a folder that holds it
    return
  for path in folder.iterdir():
    if path.is_dir():
      yield from _walk(path, (*above, here))
    else:
      yield path


def require_videos(folder, files: list) -> list:
  """The videos among the files of a folder.

  Raises:
    ValueError: no videos, or a video that is no file.
  """
  videos = [p for p in files if _is_video(p) and not _is_hidden(folder, p)]
  if not videos:
    raise ValueError(
      f'{folder} has no videos; expected files such as {", ".join(SUFFIXES)}'
    )
  for path in videos:
    if not path.is_file():
      kind = 'is no file' if path.exists() else 'is a link to a missing file'
      raise ValueError(f'{path} {kind}; remove it or restore the file')
  return videos


def _is_video(path) -> bool:
  return path.suffix.lower() in SUFFIXES


def _is_hidden(folder, path) -> bool:
  """Whether a name below the folder starts with a dot, as macOS's `._` do."""
  return any(part.startswith('.') for part in path.relative_to(folder).parts)


def _text(path) -> str:
  return text_files.read(path).strip()


# -- notes ---------------------------------------------------------------------


def _notes(*kinds: tuple[list, str]) -> tuple[str, ...]:
  """'2 texts ..., such as x.txt' of each kind that has files."""
  return tuple(
    f'{len(paths)} {text}, such as {paths[0]}' for paths, text in kinds if paths
  )


def _left_out(folder, files: list, videos) -> Iterator[tuple[list, str]]:
  """Files that are neither videos, captions nor sidecars of videos."""
  videos = set(videos)
  rest = [path for path in files if path not in videos]
  hidden = [p for p in rest if _is_video(p) and _is_hidden(folder, p)]
  yield hidden, 'hidden videos are left out'
  rest = [path for path in rest if not _is_hidden(folder, path)]
  tables = [p for p in rest if p.name in TABLES and p.parent != folder]
  yield tables, f'tables are not read, since they are not in {folder}'
  sidecars = {video.with_name(f'{video.name}.json') for video in videos}
  other = [
    path
    for path in rest
    if not _is_video(path)
    and path.suffix != TEXT
    and path.name not in TABLES
    and path not in sidecars
  ]
  kinds = sorted({path.suffix or path.name for path in other})
  more = f' and {len(kinds) - 8} more kinds' * (len(kinds) > 8)
  yield other, f'other files are left out ({", ".join(kinds[:8])}{more})'


# -- tables --------------------------------------------------------------------


def _from_table(folder, table, files: list) -> Captions:
  names = {_normal(str(p.relative_to(folder))): p for p in files}
  captions, rows, absent, empty = {}, {}, [], []
  for row in read_table(table):
    path = _find(folder, row.file, names)
    if path is None:
      absent.append(row.file)
      continue
    if path in captions:
      raise ValueError(
        f'{table}, {row.label}: {row.file} has a caption in '
        f'{rows[path].label} too; expected one row for each video'
      )
    captions[path], rows[path] = row.caption.strip(), row
    if _is_missing(captions[path]):
      empty.append(row)
  if absent:
    raise ValueError(
      f'{table} names {len(absent)} missing files, such as {absent[0]}; '
      'correct the table'
    )
  if empty:
    text = empty[0].caption
    reason = 'empty' if text_files.is_blank(text) else text.strip()
    raise ValueError(
      f'{table}, {empty[0].label}: the caption of {empty[0].file} is '
      f'{reason} (one of {len(empty)}); write it, '
      'or remove the row'
    )
  bare = [
    path
    for path in files
    if _is_video(path) and not _is_hidden(folder, path) and path not in captions
  ]
  texts = [path for path in files if path.suffix == TEXT]
  texts = [path for path in texts if not _is_hidden(folder, path)]
  unread = sorted({name for row in rows.values() for name in row.unread})
  columns = f'columns of {table.name} are not read, {", ".join(unread)}'
  return Captions(
    {p: captions[p] for p in sorted(captions, key=lambda p: rows[p].file)},
    _notes(
      (bare, f'videos are not in {table.name} and are left out'),
      (texts, f'texts are not read, since {table.name} has the captions'),
      *_left_out(folder, files, captions),
    )
    + ((f'{len(unread)} {columns}',) if unread else ()),
  )


def _is_missing(caption: str) -> bool:
  """Whether a caption is blank, or what programs write for a missing value."""
  return text_files.is_blank(caption) or caption.strip().lower() in MISSING


def _find(folder, name: str, names: dict):
  """The file of a row, once however a table spells it; None if there is none.

  Args:
    folder: the folder of the table.
    name: name in the table: relative, absolute or with backslashes.
    names: files by their normal names below the folder.
  """
  for spelling in (name, name.replace('\\', '/')):
    if posixpath.isabs(spelling):
      root = os.fspath(folder.resolve())
      spelling = posixpath.relpath(posixpath.realpath(spelling), root)
    path = names.get(_normal(posixpath.normpath(spelling)))
    if path is not None:
      return path
  try:
    path = folder / name
    return path.resolve() if path.is_file() else None
  except OSError:  # a text that is no name, such as one of 300 letters
    return None


def _normal(name: str) -> str:
  """A name in one form: macOS composes letters with accents otherwise."""
  return unicodedata.normalize('NFC', name)


def read_table(table) -> list[Row]:
  """The rows of a table of captions: JSON Lines, JSON, CSV or TSV.

  A CSV may be separated by commas, semicolons or tabs; its header has the two
  columns. A JSON is a list of rows, or an object of captions by file.

  Args:
    table: a pathlib.Path or an epath.Path.

  Raises:
    ValueError: a row that is not one file and one text, by its line.
  """
  text, suffix = text_files.read(table), table.suffix
  if suffix == '.jsonl':
    rows = _read_json_lines(table, text)
  elif suffix == '.json':
    rows = _read_json(table, text)
  else:
    rows = _read_separated(table, text)
  if not rows:
    raise ValueError(f'{table} has no rows; expected a file and a caption each')
  return [_row(table, label, values) for label, values in rows]


def _read_json_lines(table, text: str) -> list[tuple[str, Any]]:
  return [
    (f'line {number}', _parse_json(f'{table}, line {number}', line))
    for number, line in enumerate(text_files.lines(text), 1)
    if line.strip()
  ]


def _read_json(table, text: str) -> list[tuple[str, Any]]:
  values = _parse_json(str(table), text)
  if isinstance(values, dict) and not _has_columns(values):
    values = [{FILE[0]: k, CAPTION[0]: v} for k, v in values.items()]
  if not isinstance(values, list):
    raise ValueError(
      f'{table} holds one value; expected a list of rows with '
      f'{FILE[0]} and {CAPTION[0]}, or captions by file'
    )
  return [(f'row {number}', row) for number, row in enumerate(values, 1)]


def _parse_json(label: str, text: str) -> Any:
  try:
    return json.loads(text, object_pairs_hook=_unique)
  except (ValueError, RecursionError) as e:
    raise ValueError(f'{label} cannot be read as JSON ({e})') from e


def _unique(pairs: list[tuple[str, Any]]) -> dict:
  """An object whose keys are there once; json would keep the last."""
  result = dict(pairs)
  if len(result) < len(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    raise ValueError(f'{counts.most_common(1)[0][0]!r} is there twice')
  return result


def _has_columns(values: dict) -> bool:
  return any(name in values for name in FILE) and any(
    name in values for name in CAPTION
  )


def _read_separated(table, text: str) -> list[tuple[str, Any]]:
  separator = re.match(r'sep=(.)\r?\n', text)  # as Excel writes and reads it
  skipped = separator.end() if separator else 0
  separators = separator[1] if separator else SEPARATORS[table.suffix]
  for candidate in separators:
    columns = _columns(table, text[skipped:], candidate)
    if _has_columns(dict.fromkeys(columns)):
      break
  else:
    first = next(iter(text_files.lines(text[skipped:])), '')
    raise ValueError(
      f'{table} cannot be read as a table: its header is {first[:80]!r}, '
      f'expected {FILE[0]} and {CAPTION[0]}'
    )
  if len(set(columns)) < len(columns):
    raise ValueError(f'{table}: a column is there twice in {columns}')
  records = _records(table, text[skipped:], candidate)
  next(records)
  rows = []
  for line, fields in records:
    label = f'line {line + bool(separator)}'
    if len(fields) != len(columns):
      raise ValueError(
        f'{table}, {label}: {len(fields)} fields, expected {len(columns)} as '
        f'in the header; put captions with {candidate!r} or line ends in '
        'double quotes'
      )
    rows.append((label, dict(zip(columns, fields, strict=True))))
  return rows


def _columns(table, text: str, separator: str) -> list[str]:
  """The header's names; none if it is no header with this separator."""
  try:
    _, fields = next(_records(table, text, separator), (0, []))
  except ValueError:
    return []
  return [name.strip().lower() for name in fields]


def _records(table, text: str, separator: str) -> Iterator[tuple]:
  """(line, fields) of each record that is not blank."""
  reader = csv.reader(
    io.StringIO(text, newline=''),
    delimiter=separator,
    strict=True,
    skipinitialspace=True,
  )
  line = 1
  while True:
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as e:
      raise ValueError(
        f'{table}, line {line}: {e}; double quotes round a caption are doubled '
        'within it'
      ) from e
    if any(field.strip() for field in fields):
      yield line, fields
    line = reader.line_num + 1


def _row(table, label: str, values: Any) -> Row:
  if not isinstance(values, dict):
    raise ValueError(
      f'{table}, {label}: {_describe(values)}; expected {FILE[0]} and '
      f'{CAPTION[0]}'
    )
  columns = collections.Counter(str(name).strip().lower() for name in values)
  if len(columns) < len(values):
    name = columns.most_common(1)[0][0]
    raise ValueError(f'{table}, {label}: column {name} is there twice')
  values = dict(zip(columns, values.values(), strict=True))
  texts = []
  for names in (FILE, CAPTION):
    present = [name for name in names if name in values]
    if len(present) != 1:
      raise ValueError(
        f'{table}, {label}: columns {", ".join(values) or "none"}; expected '
        f'{" or ".join(names)}'
      )
    text = values[present[0]]
    if not isinstance(text, str):
      raise ValueError(
        f'{table}, {label}: {present[0]} is {_describe(text)}; expected one '
        'text'
      )
    texts.append(_checked(table, label, present[0], text))
  file, caption = texts
  if not file.strip():
    raise ValueError(f'{table}, {label}: the name of the file is empty')
  others = set(values) - {*FILE, *CAPTION, ''}
  return Row(label, file.strip(), caption, tuple(others))


def _checked(table, label: str, name: str, text: str) -> str:
  """A text of JSON may hold halves of characters, which no file can."""
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise ValueError(
      f'{table}, {label}: {name} holds half a character, {text[e.start]!r}'
    ) from e
  if '\0' in text:
    raise ValueError(f'{table}, {label}: {name} holds a zero byte')
  return text.replace(text_files.MARK, '')


def _describe(value: Any) -> str:
  if value is None:
    return 'null'
  kind = {list: 'a list', dict: 'an object', bool: 'true or false'}
  return kind.get(
    type(value), 'a text' if isinstance(value, str) else 'a number'
  )
