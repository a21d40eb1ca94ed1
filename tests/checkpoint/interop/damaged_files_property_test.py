"""Damaged files of weights: values or one ValueError, never anything else.

SPACETIME_TEST_EXAMPLES=2000 draws more files than CI does.
"""

import os

import gguf
import hypothesis
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import strategies as st

from spacetime.checkpoint.interop import weight_files
from tests.helpers import torch_archive

SETTINGS = hypothesis.settings(
  max_examples=int(os.environ.get('SPACETIME_TEST_EXAMPLES', '40')),
  derandomize=True,
  deadline=None,
  database=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)
ARRAYS = {
  'a.weight': np.arange(12, dtype=np.float32).reshape(3, 4),
  'b.bias': np.arange(5, dtype=np.float16),
}


def write_gguf(path):
  writer = gguf.GGUFWriter(path, 'wan')
  for name in ('a', 'b'):
    data = np.arange(64, dtype=np.float32).reshape(2, 32)
    quant = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(name, gguf.quants.quantize(data, quant), raw_dtype=quant)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


WRITERS = {
  'safetensors': lambda path: safetensors.numpy.save_file(ARRAYS, path),
  'pth': lambda path: torch_archive.save(path, {'model': ARRAYS}),
  'gguf': write_gguf,
}


@pytest.fixture(scope='module', params=WRITERS)
def valid(request, tmp_path_factory):
  """A file of a format: (its path, its bytes)."""
  path = tmp_path_factory.mktemp('files') / f'x.{request.param}'
  WRITERS[request.param](path)
  return path, path.read_bytes()


changes = st.lists(
  st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4
)


@SETTINGS
@hypothesis.given(changes=changes, kept=st.sampled_from([1.0, 1.0, 0.9, 0.4]))
def test_damaged_files(valid, changes, kept):
  path, data = valid
  damaged = bytearray(data[: int(kept * len(data))])
  for position, value in changes:
    damaged[int(position * len(damaged))] = value
  path.write_bytes(damaged)
  try:
    for tensor in weight_files.open_tensors(path).values():
      assert tensor.view().shape == tensor.shape
  except ValueError as e:
    assert str(path) in str(e) and len(str(e)) < 1500, str(e)
