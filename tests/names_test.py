"""Names: identifiers are nouns of the field."""

import io
import pathlib
import tokenize

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = 'spacetime', 'experiments', 'launch', 'tests'
# Words that name nothing; use message, params, metrics, report, prompts, state,
# path, mesh or layout.
VAGUE = set('asked found given made place told wanted whole'.split())


def offenders(source: str) -> list[tuple[int, str]]:
  """(line, identifier) of each identifier with a vague part, as in told_B."""
  tokens = tokenize.generate_tokens(io.StringIO(source).readline)
  return [
    (token.start[0], token.string)
    for token in tokens
    if token.type == tokenize.NAME
    and VAGUE & set(token.string.lower().split('_'))
  ]


def test_identifiers():
  lines = []
  for path in sorted(
    p for name in FOLDERS for p in (ROOT / name).rglob('*.py')
  ):
    # The name of a decorator of another library.
    source = path.read_text().replace('hypothesis.given', 'hypothesis.use')
    for line, name in offenders(source):
      lines.append(f'{path.relative_to(ROOT)}:{line}: {name}')
  assert not lines, '\n'.join(lines)


def test_offenders_are_reported():
  source = 'told_B = 1\nholds = found  # given\nWHOLE = "made"\nreplaced = 2\n'
  assert offenders(source) == [(1, 'told_B'), (2, 'found'), (3, 'WHOLE')]
