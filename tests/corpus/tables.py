"""Folders of videos with odd captions: input -> outcome, in one table.

A case writes its files into a folder that has a.mp4 and b.mp4; the outcome is
the captions by name, and parts of the notes, or a part of the refusal.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping

BOM = '\ufeff'
A, B = {'a.mp4': 'one', 'b.mp4': 'two'}, 'a.mp4,one\nb.mp4,two\n'


@dataclasses.dataclass(frozen=True)
class Case:
  """A folder and its outcome.

  Attributes:
    files: contents by name: text, bytes, or a function of the path.
    captions: captions by name; None for a refusal.
    notes: parts of the notes, in order.
    refusal: parts of the message of the ValueError.
  """

  files: Mapping[str, str | bytes | Callable]
  captions: Mapping[str, str] | None = None
  notes: tuple[str, ...] = ()
  refusal: tuple[str, ...] = ()

  def write(self, folder) -> None:
    """Writes the videos, which only have names, and the files."""
    for name in ('a.mp4', 'b.mp4'):
      (folder / name).write_bytes(b'video')
    for name, content in self.files.items():
      path = folder / name
      path.parent.mkdir(parents=True, exist_ok=True)
      if callable(content):
        content(path)
      elif isinstance(content, bytes):
        path.write_bytes(content)
      else:
        path.write_bytes(content.encode())


def texts(**changes) -> dict:
  """a.txt and b.txt."""
  return {'a.txt': 'one\n', 'b.txt': 'two'} | changes


def rows(*captions, key=('file', 'caption')) -> str:
  """JSON Lines of a.mp4 and b.mp4."""
  names = ('a.mp4', 'b.mp4')
  return '\n'.join(
    json.dumps({key[0]: n, key[1]: c}, ensure_ascii=False)
    for n, c in zip(names, captions, strict=False)
  )


def link(target: str) -> Callable:
  return lambda path: path.symlink_to(target)


def linked_folder(path) -> None:
  """A link to a folder elsewhere with one captioned video."""
  other = path.parents[1] / 'elsewhere'
  other.mkdir()
  (other / 'c.mp4').write_bytes(b'video')
  (other / 'c.txt').write_text('three')
  path.symlink_to(other)


CASES = {
  'texts': Case(texts(), A),
  'texts with a mark': Case(texts(**{'a.txt': BOM + 'one'}), A),
  'text in UTF-16': Case(texts(**{'a.txt': 'one'.encode('utf-16')}), A),
  'text in UTF-32': Case(texts(**{'a.txt': 'one'.encode('utf-32')}), A),
  'text in Latin-1': Case(
    texts(**{'a.txt': 'caf\xe9'.encode('latin-1')}),
    refusal=('a.txt is not UTF-8 text', '0xe9 at 3', 'save it as UTF-8'),
  ),
  'text in UTF-16 without its mark': Case(
    texts(**{'a.txt': 'one'.encode('utf-16-le')}), refusal=('a.txt has zero',)
  ),
  'text cut within a letter': Case(
    texts(**{'a.txt': 'caf\xe9'.encode()[:-1]}), refusal=('a.txt is not UTF-8',)
  ),
  'odd UTF-16': Case(
    texts(**{'a.txt': 'one'.encode('utf-16') + b'x'}),
    refusal=('a.txt is not UTF-16 text',),
  ),
  'text that cannot be seen': Case(
    texts(**{'a.txt': '\u200b\u200e \n'}),
    refusal=('1 of 2 captions are empty', 'a.txt'),
  ),
  'empty text': Case(
    texts(**{'a.txt': ' \n'}), refusal=('1 of 2 captions are empty', 'a.txt')
  ),
  'no text': Case(
    {'a.txt': 'one'}, refusal=('1 of 2 videos have no caption', 'b.mp4')
  ),
  'text without a video': Case(
    texts(**{'c.txt': 'three'}), A, ('1 texts have no video beside them',)
  ),
  'shared text': Case(
    texts(**{'a.webm': b''}),
    A | {'a.webm': 'one'},
    ('1 texts are shared by videos of one name',),
  ),
  'names with dots': Case(
    texts(**{'s.1.mp4': b'', 's.1.txt': 'three'}), A | {'s.1.mp4': 'three'}
  ),
  'what macOS leaves': Case(
    texts(**{'._a.mp4': b'\0', '.trash/c.mp4': b''}),
    A,
    ('2 hidden videos are left out',),
  ),
  'other containers': Case(
    texts(
      **{
        f'{kind}.{kind}': b''
        for kind in ('ts', 'm2ts', 'mpeg', '3gp', 'flv', 'wmv', 'ogv')
      },
      **{
        f'{kind}.txt': kind
        for kind in ('ts', 'm2ts', 'mpeg', '3gp', 'flv', 'wmv', 'ogv')
      },
    ),
    A
    | {
      f'{kind}.{kind}': kind
      for kind in ('ts', 'm2ts', 'mpeg', '3gp', 'flv', 'wmv', 'ogv')
    },
  ),
  'upper case': Case(
    texts(**{'C.MP4': b'', 'C.txt': 'three'}), A | {'C.MP4': 'three'}
  ),
  'unknown kinds': Case(
    texts(**{'c.rmvb': b'', 'c.txt': 'c', 'd.jpg': b'', 'a.mp4.json': '{}'}),
    A,
    ('1 texts have no video', '2 other files are left out (.jpg, .rmvb)'),
  ),
  'linked folder': Case(
    texts(**{'sub': linked_folder}), A | {'sub/c.mp4': 'three'}
  ),
  'linked video': Case(
    texts(**{'c.mp4': link('a.mp4'), 'c.txt': 'c'}), A | {'c.mp4': 'c'}
  ),
  'link to the folder itself': Case(texts(loop=link('.')), A),
  'link to nothing': Case(
    texts(**{'c.mp4': link('none'), 'c.txt': 'c'}),
    refusal=('c.mp4 is a link to a missing file',),
  ),
  'pipe': Case(
    texts(**{'c.mp4': os.mkfifo, 'c.txt': 'c'}), refusal=('c.mp4 is no file',)
  ),
  # -- CSV
  'CSV': Case({'metadata.csv': 'file,caption\n' + B}, A),
  'CSV of Excel': Case(
    {'metadata.csv': BOM + 'file,caption\r\n' + B.replace('\n', '\r\n')}, A
  ),
  'CSV in UTF-16': Case(
    {'metadata.csv': ('file,caption\n' + B).encode('utf-16')}, A
  ),
  'CSV of an old Mac': Case(
    {'metadata.csv': ('file,caption\n' + B).replace('\n', '\r')}, A
  ),
  'CSV in Latin-1': Case(
    {'metadata.csv': 'file,caption\na.mp4,caf\xe9\n'.encode('latin-1')},
    refusal=('metadata.csv is not UTF-8',),
  ),
  'CSV with semicolons': Case(
    {'metadata.csv': 'file;caption\na.mp4;one\nb.mp4;"two; or, three"\n'},
    A | {'b.mp4': 'two; or, three'},
  ),
  'CSV with semicolons and quotes': Case(
    {'metadata.csv': '"file";"caption"\n"a.mp4";"one"\n"b.mp4";"two"\n'}, A
  ),
  'CSV that names its separator': Case(
    {'metadata.csv': 'sep=;\r\nfile;caption\r\na.mp4;one\r\nb.mp4;two'}, A
  ),
  'CSV with tabs': Case(
    {'metadata.csv': 'file\tcaption\na.mp4\tone\nb.mp4\ttwo\n'}, A
  ),
  'TSV': Case(
    {'captions.tsv': 'file\tcaption\na.mp4\tone, two\nb.mp4\ttwo\n'},
    A | {'a.mp4': 'one, two'},
  ),
  "columns of Hugging Face's folders": Case(
    {'metadata.csv': 'file_name,text\n' + B}, A
  ),
  'columns in capitals, with blanks': Case(
    {'metadata.csv': 'File , Caption\na.mp4, one\nb.mp4, two\n'}, A
  ),
  'more columns': Case(
    {'metadata.csv': 'id,file,caption,fps\n1,a.mp4,one,8\n2,b.mp4,two,8\n'},
    A,
    notes=('2 columns of metadata.csv are not read, fps, id',),
  ),
  'blank lines': Case(
    {'metadata.csv': '\nfile,caption\n\na.mp4,one\n,\nb.mp4,two\n\n'}, A
  ),
  'quotes and lines': Case(
    {'metadata.csv': 'file,caption\na.mp4,"a ""b"",\nc"\nb.mp4,two\n'},
    {'a.mp4': 'a "b",\nc', 'b.mp4': 'two'},
  ),
  'comma without quotes': Case(
    {'metadata.csv': 'file,caption\na.mp4,one\nb.mp4,a ball, rolling\n'},
    refusal=('metadata.csv, line 3: 3 fields, expected 2', 'double quotes'),
  ),
  'comma without quotes, all rows alike': Case(
    {'metadata.csv': 'file,caption\na.mp4,a, b\nb.mp4,c, d\n'},
    refusal=('metadata.csv, line 2: 3 fields',),
  ),
  'short row': Case(
    {'metadata.csv': 'file,caption\na.mp4,one\nb.mp4\n'},
    refusal=('metadata.csv, line 3: 1 fields, expected 2',),
  ),
  'row after a caption of two lines': Case(
    {'metadata.csv': 'file,caption\na.mp4,"x\ny"\nb.mp4\n'},
    refusal=('line 4: 1 fields',),
  ),
  'empty field': Case(
    {'metadata.csv': 'file,caption\na.mp4,one\nb.mp4,\n'},
    refusal=('metadata.csv, line 3: the caption of b.mp4 is empty',),
  ),
  'empty name': Case(
    {'metadata.csv': 'file,caption\n,one\n'},
    refusal=('metadata.csv, line 2: the name of the file is empty',),
  ),
  'open quote': Case(
    {'metadata.csv': 'file,caption\na.mp4,"one\nb.mp4,two\n'},
    refusal=('metadata.csv, line 2: unexpected end of data',),
  ),
  'quote within a field': Case(
    {'metadata.csv': 'file,caption\na.mp4,"one" more\nb.mp4,two\n'},
    refusal=('metadata.csv, line 2',),
  ),
  'inches': Case(
    {'metadata.csv': 'file,caption\na.mp4,5" tall\nb.mp4,two\n'},
    A | {'a.mp4': '5" tall'},
  ),
  'other columns': Case(
    {'metadata.csv': 'name,words\n' + B},
    refusal=('metadata.csv', "header is 'name,words', expected file and capt"),
  ),
  'no header': Case({'metadata.csv': B}, refusal=("header is 'a.mp4,one'",)),
  'two columns for one': Case(
    {'metadata.csv': 'file,caption,text\na.mp4,one,uno\n'},
    refusal=('line 2: columns file, caption, text; expected caption or text',),
  ),
  'column twice': Case(
    {'metadata.csv': 'file,caption,caption\na.mp4,one,uno\n'},
    refusal=('a column is there twice',),
  ),
  'empty table': Case({'metadata.csv': ''}, refusal=('metadata.csv', 'header')),
  'header alone': Case(
    texts(**{'metadata.csv': 'file,caption\n'}), refusal=('has no rows',)
  ),
  'missing file': Case(
    {'metadata.csv': 'file,caption\nz.mp4,zero\n'},
    refusal=('names 1 missing files, such as z.mp4',),
  ),
  'caption in place of a name': Case(
    {'metadata.csv': f'file,caption\n{"long " * 99},a.mp4\n'},
    refusal=('names 1 missing files',),
  ),
  'no file twice': Case(
    {'metadata.csv': 'file,caption\n' + B + './a.mp4,three\n'},
    refusal=('./a.mp4 has a caption in line', 'expected one row for each'),
  ),
  'backslashes': Case(
    {
      'deep/c.mp4': b'',
      'metadata.csv': 'file,caption\n' + B + 'deep\\c.mp4,three\n',
    },
    A | {'deep/c.mp4': 'three'},
  ),
  'accents of macOS': Case(
    {
      'cafe\u0301.mp4': b'',
      'metadata.csv': 'file,caption\n' + B + 'caf\xe9.mp4,three\n',
    },
    A | {'cafe\u0301.mp4': 'three'},
  ),
  'half of the videos': Case(
    {'metadata.csv': 'file,caption\na.mp4,one\n'},
    {'a.mp4': 'one'},
    ('1 videos are not in metadata.csv and are left out, such as',),
  ),
  'a table, and texts': Case(
    texts(**{'captions.jsonl': rows('uno')}),
    {'a.mp4': 'uno'},
    ('1 videos are not in captions.jsonl', '2 texts are not read, since'),
  ),
  'two tables': Case(
    {'captions.jsonl': rows('one', 'two'), 'metadata.csv': 'x'},
    refusal=('has 2 tables of captions, captions.jsonl and metadata.csv',),
  ),
  'table in a subfolder': Case(
    texts(**{'deep/metadata.csv': 'x'}), A, ('1 tables are not read',)
  ),
  # -- JSON
  'JSON Lines': Case({'captions.jsonl': rows('one', 'two')}, A),
  'JSON Lines of Windows': Case(
    {'metadata.jsonl': BOM + rows('one', 'two').replace('\n', '\r\n') + '\r\n'},
    A,
  ),
  'JSON Lines of Hugging Face': Case(
    {'metadata.jsonl': rows('one', 'two', key=('file_name', 'text'))}, A
  ),
  'separators of lines within a caption': Case(
    {'captions.jsonl': rows('one\u2028more', 'two\x85more\x1c')},
    {'a.mp4': 'one\u2028more', 'b.mp4': 'two\x85more'},
  ),
  'JSON': Case(
    {'captions.json': f'[{rows("one", "two").replace(chr(10), ",")}]'}, A
  ),
  'JSON by file': Case({'captions.json': json.dumps(A)}, A),
  'JSON by file, twice': Case(
    {'captions.json': '{"a.mp4": "one", "a.mp4": "two"}'},
    refusal=('captions.json cannot be read', "'a.mp4' is there twice"),
  ),
  'JSON of one text': Case(
    {'captions.json': '"one"'}, refusal=('captions.json holds one value',)
  ),
  'a missing value of pandas': Case(
    {'metadata.csv': 'file,caption\na.mp4,one\nb.mp4,nan\n'},
    refusal=('metadata.csv, line 3: the caption of b.mp4 is nan',),
  ),
  "Python's None in a text": Case(
    texts(**{'b.txt': 'None\n'}), refusal=('1 of 2 captions are empty', 'b.txt')
  ),
  'the part of a video': Case(
    {'metadata.csv': 'file,start,end,caption\na.mp4,1,2,one\nb.mp4,0,1,two'},
    A,
    notes=('2 columns of metadata.csv are not read, end, start',),
  ),
  'null': Case(
    {'captions.jsonl': rows('one', None)},
    refusal=('captions.jsonl, line 2: caption is null; expected one text',),
  ),
  'list': Case(
    {'captions.jsonl': rows(['one', 'two'])},
    refusal=('captions.jsonl, line 1: caption is a list',),
  ),
  'number': Case(
    {'captions.jsonl': rows('one', 7)}, refusal=('line 2: caption is a number',)
  ),
  'object': Case(
    {'captions.jsonl': rows({'en': 'one'})},
    refusal=('line 1: caption is an object',),
  ),
  'no caption': Case(
    {'captions.jsonl': '{"file": "a.mp4"}'},
    refusal=('line 1: columns file; expected caption or text',),
  ),
  'a row that is no object': Case(
    {'captions.jsonl': '["a.mp4", "one"]'}, refusal=('line 1: a list; expect',)
  ),
  'cut line': Case(
    {'captions.jsonl': rows('one') + '\n{"file": "b.mp4"'},
    refusal=('captions.jsonl, line 2 cannot be read as JSON',),
  ),
  'two captions in one row': Case(
    {'captions.jsonl': '{"file": "a.mp4", "caption": "x", "caption": "y"}'},
    refusal=("line 1 cannot be read as JSON ('caption' is there twice)",),
  ),
  'two columns but for capitals': Case(
    {'captions.jsonl': '{"file": "a.mp4", "caption": "x", "Caption": "y"}'},
    refusal=('captions.jsonl, line 1: column caption is there twice',),
  ),
  'half a character': Case(
    {'captions.jsonl': '{"file": "a.mp4", "caption": "\\ud83d"}'},
    refusal=('line 1: caption holds half a character',),
  ),
  'deep': Case(
    {'captions.json': '[' * 100_000}, refusal=('captions.json cannot be read',)
  ),
  'one video twice': Case(
    {'captions.jsonl': rows('one', 'two') + '\n' + rows('three')},
    refusal=('a.mp4 has a caption in line 1 too',),
  ),
  'caption that cannot be seen': Case(
    {'captions.jsonl': rows('one', '\u200b\u2060')},
    refusal=('line 2: the caption of b.mp4 is empty',),
  ),
  'empty caption': Case(
    {'captions.jsonl': rows('one', ' ')},
    refusal=('line 2: the caption of b.mp4 is empty',),
  ),
}
