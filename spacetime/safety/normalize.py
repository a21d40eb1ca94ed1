"""Normalised text: the same words whatever their spelling tricks."""

import re
import unicodedata

_LEET = str.maketrans('013457@$!|', 'oieastasil')
# Letters of other scripts that look like Latin ones.
_LOOKALIKES = str.maketrans(
  'аеорсухіјѕԁһӏαειονρτυχκ', 'aeopcyxijsdhlaeiovptuxk'
)
_SPACED = re.compile(r'\b(?:\w[ .\-_*]+){2,}\w\b')
_SEPARATED = re.compile(r'(?<=\w)[.\-_*~^]+(?=\w)')
_LATIN = re.compile(r'[a-z]')
_NUMBER = re.compile(r'\d+')


def plain(text: str) -> str:
  """Lower-case words with single spaces between them.

  Undoes compatibility forms, accents, invisible characters, look-alike
  letters, leetspeak within words, letters spaced out and letters repeated.
  """
  text = unicodedata.normalize('NFKD', text).casefold()
  text = ''.join(
    c
    for c in text
    if unicodedata.category(c) not in ('Mn', 'Cf', 'Cc') or c.isspace()
  )
  words = []
  for word in text.split():
    if _LATIN.search(word):  # else it is a word of another script
      word = word.translate(_LOOKALIKES)
    core = word.strip('.,;:!?"\'()[]{}')
    if any(c.isalpha() for c in core) and not _NUMBER.fullmatch(core):
      core = core.translate(_LEET)
    words.append(core)
  text = ' '.join(words)
  text = _SPACED.sub(lambda m: _joined(m[0]), text)
  text = _SEPARATED.sub('', text)
  text = re.sub(r'[^\w\s]', ' ', text)
  text = re.sub(r'(\w)\1{2,}', r'\1\1', text)
  return ' '.join(text.split())


def _joined(text: str) -> str:
  """'k i l l' as one word; 'a b' of two words stays."""
  letters = re.sub(r'[ .\-_*]+', '', text)
  if not letters.isalpha():
    return text
  # The first letter may be an article: 'a k n i f e'.
  return f'{letters} {letters[1:]}' if letters[0] in 'ai' else letters
