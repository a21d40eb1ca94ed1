"""README and docs: flags of commands that are not run, links, blocks."""

import os
import pathlib
import shlex

import pytest

from spacetime import __main__ as spacetime_main
from tests.helpers import commands, documents


def parsed_commands():
  """Lines of the blocks that are not run, those of `spacetime`."""
  return [
    line
    for page in documents.PAGES
    for block in documents.blocks(page)
    if block.language == documents.PARSED
    for line in documents.commands(block)
  ]


@pytest.mark.parametrize('line', parsed_commands())
def test_commands_that_are_not_run_have_flags_that_exist(line):
  words = shlex.split(line, comments=True)
  while '=' in words[0]:
    words.pop(0)  # an environment variable
  if words[0] == 'spacetime':
    assert words[1] in spacetime_main.COMMANDS
    commands.parse(*words[1:])
  elif words[:2] == ['python', '-m']:
    path = documents.ROOT / (words[2].replace('.', '/') + '.py')
    assert path.is_file()
  elif words[0] == 'python':
    text = (documents.ROOT / words[1]).read_text()
    for word in words[2:]:
      name = word.partition('=')[0]
      assert name[:2] != '--' or f"'{name}'" in text, name
  else:
    assert (documents.ROOT / words[1]).is_file(), line


def test_links_lead_somewhere():
  for page in documents.PAGES:
    path = documents.ROOT / page
    for target in documents.links(path.read_text()):
      if '://' not in target and not target.startswith('#'):
        target = target.partition('#')[0]
        assert os.path.exists(path.parent / target), f'{page}: {target}'


def test_every_block_says_what_it_is():
  known = {documents.RUN, documents.PYTHON, documents.PARSED}
  for page in documents.PAGES:
    for block in documents.blocks(page):
      assert block.language in known, f'{page}: {block.text}'


def test_readme_is_two_pages():
  text = (pathlib.Path(documents.ROOT) / 'README.md').read_text()
  assert len(text.splitlines()) <= 160
