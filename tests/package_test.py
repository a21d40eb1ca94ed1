"""The public names of the package, and its error for settings."""

import pickle
import subprocess
import sys

import pytest

import spacetime


def test_import_needs_no_jax():
  code = 'import sys, spacetime; sys.exit("jax" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.slow
def test_sampling_needs_no_libraries_of_training():
  """They would be half of the start of `spacetime sample`."""
  unused = {'grain', 'orbax', 'optax', 'ftfy', 'tensorflow_datasets'}
  code = f"""
import sys
from spacetime.pipeline import pipeline
pipeline.Pipeline('digits').engine
sys.exit(', '.join({unused} & set(sys.modules)) or None)"""
  subprocess.run([sys.executable, '-c', code], check=True)


def test_unknown_names_are_refused():
  with pytest.raises(AttributeError, match="no attribute 'sample'"):
    _ = spacetime.sample


def test_setting_error_names_setting_value_and_expected():
  error = spacetime.SettingError(
    'train.steps', 0, '1 or more', hint='leave it out'
  )
  assert str(error) == 'train.steps=0: expected 1 or more; leave it out'
  assert isinstance(error, ValueError)


def test_setting_error_survives_pickling():
  error = spacetime.SettingError('fps', -1.0, 'above 0')
  copied = pickle.loads(pickle.dumps(error))
  assert (str(copied), copied.name) == (str(error), 'fps')
