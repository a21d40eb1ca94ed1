"""The videos of a folder, and their captions.

Captions are in VIDEO.txt beside VIDEO.mp4, or for all files in captions.jsonl
or metadata.csv with `file` and `caption`.
"""

import csv
import json
import pathlib
from collections.abc import Mapping

VIDEOS = ('.mp4', '.webm', '.mkv', '.mov', '.m4v', '.avi', '.gif', '.mpg')
TABLES = ('captions.jsonl', 'metadata.csv')


def find_videos(folder: pathlib.Path) -> list[pathlib.Path]:
  """The videos of a folder and of those in it, in the order of their names.

  Raises:
    ValueError: no folder, or none in it.
  """
  if not folder.is_dir():
    raise ValueError(f'{folder} is no folder; change data.dir or --data')
  paths = sorted(p for p in folder.rglob('*') if p.suffix.lower() in VIDEOS)
  if not paths:
    raise ValueError(
      f'{folder} has no videos; expected files such as {", ".join(VIDEOS)}; '
      'change data.dir or --data'
    )
  return paths


def captions(folder: pathlib.Path) -> dict[pathlib.Path, str]:
  """Caption by video, in the order of the names.

  Raises:
    ValueError: no folder, no videos, videos without a caption, or a table that
      cannot be read or names what is not there.
  """
  if not folder.is_dir():
    raise ValueError(f'{folder} is no folder; change data.dir')
  table = _table(folder)
  if table:
    absent = [name for name in table if not (folder / name).is_file()]
    if absent:
      raise ValueError(
        f'{folder}: the table names {len(absent)} files that are not there, '
        f'such as {absent[0]}; correct the table or change data.dir'
      )
    return {folder / name: table[name] for name in sorted(table)}
  paths = find_videos(folder)
  bare = [p for p in paths if not p.with_suffix('.txt').is_file()]
  if bare:
    raise ValueError(
      f'{len(bare)} of {len(paths)} videos have no caption, such as '
      f'{bare[0]}; expected {bare[0].stem}.txt beside it, or '
      f'{" or ".join(TABLES)} in {folder}'
    )
  return {
    p: p.with_suffix('.txt').read_text(encoding='utf-8').strip() for p in paths
  }


def _table(folder: pathlib.Path) -> dict[str, str]:
  lines, path = folder / TABLES[0], folder / TABLES[1]
  try:
    if lines.is_file():
      path = lines
      texts = lines.read_text(encoding='utf-8').splitlines()
      rows = [json.loads(text) for text in texts if text.strip()]
    elif path.is_file():
      with path.open(newline='', encoding='utf-8') as f:
        rows = list(csv.DictReader(f))
    else:
      return {}
    return dict(_row(row) for row in rows)
  except (KeyError, TypeError, ValueError) as e:
    raise ValueError(
      f'{path} cannot be read as a table ({type(e).__name__}: {e}); expected '
      'file and caption in every row'
    ) from e


def _row(row: Mapping[str, str]) -> tuple[str, str]:
  return row['file'], row['caption']
