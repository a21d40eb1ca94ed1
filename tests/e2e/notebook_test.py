"""docs/quickstart.ipynb, executed from its first cell to its last."""

import os
import pathlib

import nbclient
import nbformat

from tests.helpers import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 960  # of a cell, on a busy machine
# Shortens the training of two minutes; a slip in the notebook fails the test.
SHORTER = {
  'config.train.steps = 100': 'config.train.steps = 4',
  'held_out_clips = 1000, 64': 'held_out_clips = 64, 16',
}


def test_the_notebook_runs(tmp_path):
  notebook = nbformat.read(ROOT / 'docs/quickstart.ipynb', as_version=4)
  for text, shorter in SHORTER.items():
    (cell,) = [cell for cell in notebook.cells if text in cell.source]
    cell.source = cell.source.replace(text, shorter)
  client = nbclient.NotebookClient(
    notebook,
    timeout=SECONDS,
    kernel_name='python3',
    resources={'metadata': {'path': str(tmp_path)}},
  )
  environment = os.environ | {
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': xla_flags.COMPILE_QUICKLY,
    'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.cache/jax_tests'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
  }
  client.execute(env=environment)
  outputs = [cell.outputs for cell in notebook.cells if 'outputs' in cell]
  assert len(outputs) > 8
  html = [
    output.data['text/html']
    for cell in outputs
    for output in cell
    if output.output_type == 'execute_result' and 'text/html' in output.data
  ]
  assert sum('<video' in text for text in html) >= 5
  assert (tmp_path / 'runs/notebook/config.json').exists()


def test_the_notebook_is_stored_without_outputs():
  notebook = nbformat.read(ROOT / 'docs/quickstart.ipynb', as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    assert not cell.get('outputs') and not cell.get('execution_count')
