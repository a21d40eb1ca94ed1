"""Policies: which texts and frames are refused, as data in JSON files.

A policy names the categories that it refuses, by rules of words and by a
classifier of texts, and a classifier of frames, with their thresholds.
Allow-phrases are taken out of a text before its rules are applied, so that "a
cock crows at dawn" passes.
"""

import dataclasses
import functools
import hashlib
import importlib.resources
import json
import os
import pathlib
import re
from collections.abc import Mapping

from spacetime import SettingError
from spacetime.safety import normalize

NAMES = ('off', 'standard', 'strict')
_FOLDER = importlib.resources.files('spacetime.safety') / 'policies'


class CheckError(Exception):
  """A check could not run; what it was to check has not passed."""


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Result of one check.

  Attributes:
    allowed: whether it passed.
    checker: name and version of what checked.
    category: category of a refusal; empty if allowed.
    rule: id of the rule, such as 'violence/graphic.3'; never its text.
    score: 0 to 1, or None for rules.
  """

  allowed: bool
  checker: str
  category: str = ''
  rule: str = ''
  score: float | None = None


@dataclasses.dataclass(frozen=True)
class Frames:
  """Classifier of frames.

  Attributes:
    checker: its name, see frames.py.
    every: of so many frames, one is classified.
    threshold: score from which frames are refused.
  """

  checker: str
  every: int
  threshold: float


@dataclasses.dataclass(frozen=True)
class Texts:
  """Classifier of texts.

  Attributes:
    checker: its name, see texts.py.
    threshold: score from which a text is refused.
    minors_threshold: the same of a text that names minors.
  """

  checker: str
  threshold: float
  minors_threshold: float


@dataclasses.dataclass(frozen=True)
class Policy:
  """A policy.

  Attributes:
    name: its name.
    version: date of the last change.
    digest: first digits of the SHA-256 of its data and rules.
    categories: categories of texts that are refused.
    rules: patterns of each category.
    allow: phrases that are taken out before the rules are applied.
    minors: words for minors.
    texts: classifier of texts, or None.
    frames: classifier of frames, or None.
    attest: whether uploads need the statement that they may be used.
  """

  name: str
  version: str
  digest: str
  categories: tuple[str, ...]
  rules: Mapping[str, tuple[re.Pattern, ...]]
  allow: tuple[re.Pattern, ...]
  minors: re.Pattern
  texts: Texts | None
  frames: Frames | None
  attest: bool

  def check_text(self, text: str) -> Verdict:
    """The verdict on a prompt; the first category that matches counts."""
    checker = f'rules {self.version} {self.digest}'
    matches = self.matches(text)
    for category in self.categories:
      if category in matches:
        rule = f'{category}.{matches[category]}'
        return Verdict(False, checker, category, rule)
    return Verdict(True, checker)

  def names_minors(self, text: str) -> bool:
    """Whether a text names children or teenagers."""
    return self.minors.search(normalize.plain(text)) is not None

  def matches(self, text: str) -> dict[str, int]:
    """Number of the first matching pattern of each category that matches."""
    plain = normalize.plain(text)
    for pattern in self.allow:
      plain = pattern.sub(' ', plain)
    result = {}
    for category, patterns in self.rules.items():
      for i, pattern in enumerate(patterns):
        if pattern.search(plain):
          result[category] = i
          break
    return result


def load(name: str) -> Policy:
  """Loads a policy by its name, or from a file.

  Raises:
    SettingError: no such policy, or a broken file.
  """
  try:
    if name in NAMES:
      text = (_FOLDER / f'{name}.json').read_text()
    else:
      text = pathlib.Path(os.path.expanduser(name)).read_text()
    return _parse(name, text)
  except (OSError, ValueError, KeyError, TypeError, re.error) as e:
    raise SettingError(
      'policy',
      name,
      f'{", ".join(NAMES)}, or a file of such a policy',
      hint=f'{type(e).__name__}: {e}',
    ) from e


@functools.cache
def _rules() -> str:
  return (_FOLDER / 'rules.json').read_text()


def _parse(name: str, text: str) -> Policy:
  data, rules = json.loads(text), json.loads(_rules())
  # A file of the operator's may add patterns and allow-phrases.
  added, allowed = data.get('add', {}), data.get('allow', [])
  patterns = {
    category: [*rules['refuse'].get(category, ()), *added.get(category, ())]
    for category in {**rules['refuse'], **added}
  }
  unknown = set(data['categories']) - patterns.keys()
  if unknown:
    raise ValueError(f'unknown categories {sorted(unknown)}')
  words = {key: '|'.join(terms) for key, terms in rules['words'].items()}
  texts, frames = data.get('texts'), data.get('frames')
  digest = hashlib.sha256((text + _rules()).encode()).hexdigest()[:12]
  return Policy(
    name=pathlib.PurePath(name).stem,
    version=data['version'],
    digest=digest,
    categories=tuple(data['categories']),
    rules={
      category: tuple(_compile(p, words) for p in entries)
      for category, entries in patterns.items()
    },
    allow=tuple(_compile(p, words) for p in [*rules['allow'], *allowed]),
    minors=_compile('{minor}', words),
    texts=None if texts is None else Texts(**texts),
    frames=None if frames is None else Frames(**frames),
    attest=bool(data.get('attest', False)),
  )


def _compile(pattern: str, words: Mapping[str, str]) -> re.Pattern:
  """A pattern of whole words; {NAME} stands for a list, ' .. ' for a gap of up
  to six words, ' & ' for both parts in any order."""
  parts = pattern.split(' & ')
  if len(parts) > 1:
    ahead = ''.join(f'(?=.*{_expression(part, words)})' for part in parts)
    return re.compile(f'^{ahead}', re.DOTALL)
  return re.compile(_expression(pattern, words))


def _expression(pattern: str, words: Mapping[str, str]) -> str:
  for name, terms in words.items():
    pattern = pattern.replace(f'{{{name}}}', f'(?:{terms})')
  pattern = pattern.replace(' .. ', r'(?: \w+){0,6} ')
  if not pattern.isascii():
    return pattern  # scripts without spaces have no borders of words
  return rf'\b(?:{pattern})\b'
