"""Every command of README and docs, word for word, in a fresh shell."""

import pytest

from tests.helpers import documents

STEPS = '2'  # of every run: the value of SPACETIME_TEST_STEPS
CACHE = documents.ROOT / '.cache/jax_tests'


@pytest.mark.parametrize(
  'page',
  [
    page
    for page in documents.PAGES
    if any(
      block.language in (documents.RUN, documents.PYTHON)
      for block in documents.blocks(page)
    )
  ],
)
def test_the_commands_of_a_page_run(page, tmp_path):
  checkout = documents.checkout(tmp_path / 'checkout')
  cache = tmp_path / 'checkout/.cache/spacetime'
  cache.mkdir(parents=True)
  CACHE.mkdir(parents=True, exist_ok=True)
  (cache / 'jax').symlink_to(CACHE)  # compiled programs of other tests
  program = []
  for block in documents.blocks(page):
    if block.language == documents.RUN:
      program += ['set -x', block.text, 'set +x']
    elif block.language == documents.PYTHON:
      program += [f"python3 - <<'END'\n{block.text}END"]
  ran = documents.run(
    '\n'.join(program),
    cwd=checkout,
    tools=tmp_path / 'tools',
    SPACETIME_TEST_STEPS=STEPS,
  )
  assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
