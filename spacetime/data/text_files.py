"""Text files that users bring: captions, tables and lists of prompts."""

import codecs
import re
import unicodedata

# Byte-order marks and their encodings; UTF-32's begins with UTF-16's.
MARKS = (
  (codecs.BOM_UTF8, 'utf-8-sig'),
  (codecs.BOM_UTF32_LE, 'utf-32'),
  (codecs.BOM_UTF32_BE, 'utf-32'),
  (codecs.BOM_UTF16_LE, 'utf-16'),
  (codecs.BOM_UTF16_BE, 'utf-16'),
)
MARK = '\ufeff'  # left in the middle of a text where files were joined
_LINE_END = re.compile('\r\n|\r|\n')


def read(path) -> str:
  """The text of a file in UTF-8, or in UTF-16 or UTF-32 with their mark.

  Other encodings are refused, since guessing one would change letters.

  Args:
    path: a pathlib.Path or an epath.Path.

  Raises:
    ValueError: another encoding, with the file's name.
  """
  data = path.read_bytes()
  encoding = next((name for m, name in MARKS if data.startswith(m)), 'utf-8')
  try:
    text = data.decode(encoding)
  except UnicodeDecodeError as e:
    raise ValueError(
      f'{path} is not {encoding.removesuffix("-sig").upper()} text (byte '
      f'0x{data[e.start]:02x} at {e.start}); save it as UTF-8'
    ) from e
  if '\0' in text:
    raise ValueError(
      f'{path} has zero bytes, as UTF-16 without its mark or a binary file '
      'has; save it as UTF-8'
    )
  return text.replace(MARK, '')


def is_blank(text: str) -> bool:
  """Whether nothing of a text can be seen: blanks, marks of direction, spaces
  of no width and other characters without a shape."""
  unseen = ('Zs', 'Zl', 'Zp', 'Cc', 'Cf', 'Mn')
  return all(unicodedata.category(letter) in unseen for letter in text)


def lines(text: str) -> list[str]:
  """The lines of a text, whatever system ended them.

  Unlike str.splitlines, it does not cut at characters that may stand within a
  sentence, such as U+2028 and U+0085.
  """
  return _LINE_END.split(text)
