"""Tests of files that appear complete or not at all."""

import os
import pathlib

import pytest
from etils import epath

from spacetime.media import files


@pytest.mark.parametrize('kind', [pathlib.Path, epath.Path])
def test_atomic_write_replaces_on_success_only(tmp_path, kind):
  path = kind(tmp_path / 'new' / 'a.txt')
  with files.atomic_write(path) as temporary:
    assert temporary.suffix == '.txt' and not path.exists()
    temporary.write_text('one')
  with pytest.raises(RuntimeError), files.atomic_write(path) as temporary:
    temporary.write_text('two')
    raise RuntimeError
  assert path.read_text() == 'one'
  assert os.listdir(tmp_path / 'new') == ['a.txt']


@pytest.mark.parametrize('kind', [pathlib.Path, epath.Path])
def test_atomic_folder_appears_complete(tmp_path, kind):
  path = kind(tmp_path / 'folder')
  with files.atomic_folder(path) as temporary:
    (temporary / 'a').write_text('one')
    assert not path.exists()
  with pytest.raises(RuntimeError), files.atomic_folder(path, replace=True):
    raise RuntimeError
  with files.atomic_folder(path, replace=True) as temporary:
    (temporary / 'b').write_text('two')
  assert os.listdir(tmp_path) == ['folder'] and os.listdir(path) == ['b']


def test_check_writable_makes_nothing(tmp_path):
  files.check_writable(tmp_path / 'new' / 'folder')
  files.check_writable('gs://bucket/run')
  assert not os.listdir(tmp_path)
  (tmp_path / 'file').write_text('')
  (tmp_path / 'loop').symlink_to('loop')
  (tmp_path / 'gone').symlink_to('nothing')
  names = ('file/run', 'loop', 'loop/run', 'gone', 'gone/run', 300 * 'x')
  for path in ('/proc/none', *(tmp_path / name for name in names)):
    with pytest.raises(ValueError, match=f'{path} cannot be written'):
      files.check_writable(path)


@pytest.mark.parametrize('function', [files.as_path, files.with_home])
def test_home_folders(function, monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  assert function('~/a') == pathlib.Path('/home/me/a')
  # As in a shell: a file may have such a name.
  assert function('~no-such-user/a') == pathlib.Path('~no-such-user/a')
