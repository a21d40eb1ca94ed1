"""Tests of this folder are left out by `launch/test.sh --quick`."""

import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items):
  """Marks the tests of this folder."""
  for item in items:
    if FOLDER in item.path.parents:
      item.add_marker(pytest.mark.e2e)
