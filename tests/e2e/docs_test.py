"""Every command of README and docs, word for word, in a fresh shell."""

import pytest

from tests.helpers import documents

STEPS = '2'  # of every run: the value of SPACETIME_TEST_STEPS
CACHE = documents.ROOT / '.cache/jax_tests'


@pytest.fixture(scope='module')
def shell(tmp_path_factory):
  CACHE.mkdir(parents=True, exist_ok=True)
  with documents.shell(
    tmp_path_factory.mktemp('shell'),
    SPACETIME_TEST_STEPS=STEPS,
    JAX_COMPILATION_CACHE_DIR=str(CACHE),  # for Python without a command
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.1',
  ) as opened:
    yield opened


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
def test_the_commands_of_a_page_run(page, shell, tmp_path):
  checkout = documents.checkout(tmp_path / 'checkout')
  cache = tmp_path / 'checkout/.cache/spacetime'
  cache.mkdir(parents=True)
  (cache / 'jax').symlink_to(CACHE)  # compiled programs of other tests
  program = []
  for block in documents.blocks(page):
    if block.language == documents.RUN:
      program += ['set -x', block.text, 'set +x']
    elif block.language == documents.PYTHON:
      program += [f"python3 - <<'END'\n{block.text}END"]
  ran = shell.run('\n'.join(program), cwd=checkout)
  assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
