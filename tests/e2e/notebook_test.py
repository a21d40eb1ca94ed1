"""docs/quickstart.ipynb, executed from its first cell to its last."""

import os
import pathlib

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 240  # bar on two quiet cores; a cell may take as long on busy ones


def test_the_notebook_runs(tmp_path):
  notebook = nbformat.read(ROOT / 'docs/quickstart.ipynb', as_version=4)
  client = nbclient.NotebookClient(
    notebook,
    timeout=4 * SECONDS,
    kernel_name='python3',
    resources={'metadata': {'path': str(tmp_path)}},
  )
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  client.execute(env=environment | {'PYTHONPATH': str(ROOT)})
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
