"""Repositories by name, with a stand-in for the download."""

import pathlib
import sys
import types

import pytest

from spacetime.checkpoint import hub


def test_names_of_repositories():
  assert hub.is_name('Wan-AI/Wan2.1-T2V-1.3B-Diffusers')
  for path in ('digits', 'a/b/c', '/tmp/x', './runs', '../a', 'runs/', '~/a'):
    assert not hub.is_name(path), path


def test_only_what_is_needed_is_downloaded(monkeypatch, tmp_path):
  calls = []

  def snapshot_download(name, *, allow_patterns):
    calls.append(name)
    for file, matches in (
      ('model_index.json', True),
      ('transformer/x-00001-of-00002.safetensors', True),
      ('tokenizer/spiece.model', True),
      ('models_t5.pth', False),
      ('assets/logo.png', False),
    ):
      matched = any(pathlib.PurePath(file).match(p) for p in allow_patterns)
      assert matched == matches, file
    return str(tmp_path)

  module = types.SimpleNamespace(snapshot_download=snapshot_download)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', module)
  assert hub.fetch('a/b') == tmp_path
  assert calls == ['a/b']


def test_what_cannot_be_fetched(monkeypatch):
  def snapshot_download(name, **kwargs):
    raise OSError('no network')

  module = types.SimpleNamespace(snapshot_download=snapshot_download)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', module)
  with pytest.raises(ValueError, match="'a/b': .*OSError: no network"):
    hub.fetch('a/b')
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(
    ValueError, match='huggingface_hub, which .*not installed'
  ):
    hub.fetch('a/b')
