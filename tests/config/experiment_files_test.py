"""Experiments by name and by file."""

import pytest

from spacetime.config import experiment_files

PAGE = """
from experiments import base
def get_config(size='small'):
  return base.get_config(size)
"""
BASE = """
def get_config(size):
  if size != 'small':
    raise ValueError(f'size {size!r}: expected small')
  return {'size': size}
"""


def test_names_and_files_are_resolved():
  assert experiment_files.find('digits:cpu').endswith('digits.py:cpu')
  path = 'experiments/digits.py:cpu'
  assert experiment_files.find(path) == path
  assert experiment_files.load('pods').mesh.fsdp == 16


def test_experiments_of_any_folder_import_each_other(tmp_path):
  folder = tmp_path / 'experiments'
  folder.mkdir()
  (folder / 'page.py').write_text(PAGE)
  (folder / 'base.py').write_text(BASE)
  page = str(folder / 'page.py')
  assert experiment_files.load(page) == {'size': 'small'}
  with pytest.raises(ValueError, match="size 'big': expected small"):
    experiment_files.load(f'{page}:big')


def test_refuses_unknown_names():
  with pytest.raises(ValueError, match="config='digit:cpu'.*mean digits?"):
    experiment_files.find('digit:cpu')


def test_refuses_files_that_cannot_be_imported(tmp_path):
  path = tmp_path / 'page.py'
  path.write_text('import nothing_of_that_name')
  with pytest.raises(ValueError, match='page.py cannot be imported'):
    experiment_files.load(str(path))
