"""Files that torch.save writes, read without torch."""

import collections

import numpy as np
import pytest

from spacetime.checkpoint.interop import torch_files

pytestmark = pytest.mark.parity


def test_what_torch_saves(tmp_path):
  import torch

  torch.manual_seed(0)
  base = torch.randn(6, 8)
  tree = collections.OrderedDict(
    plain=torch.randn(3, 4),
    half=torch.randn(5).half(),
    bfloat=torch.randn(2, 3).bfloat16(),
    count=torch.arange(3),
    scalar=torch.tensor(2.5),
    transposed=base.T,
    cut=base[2:5, ::2],
    tied=base,
  )
  path = tmp_path / 'x.pth'
  for saved in (tree, {'state_dict': tree, 'epoch': 3}):
    torch.save(saved, path)
    tensors = torch_files.open_file(path)
    assert tensors.keys() == tree.keys()
    for name, tensor in tree.items():
      np.testing.assert_array_equal(
        np.float32(tensors[name].view()), tensor.float().numpy(), err_msg=name
      )


def test_modules_are_refused(tmp_path):
  """A pickled module needs code."""
  import torch

  path = tmp_path / 'x.pth'
  float8 = torch.randn(4, 4).to(torch.float8_e4m3fn)  # has a fourth global
  for value in (torch.nn.Linear(2, 2), {'a': float8}):
    torch.save(value, path)
    with pytest.raises(ValueError, match='is a pickle, .*it needs'):
      torch_files.open_file(path)
  torch.save(torch.randn(3), path, _use_new_zipfile_serialization=False)
  with pytest.raises(ValueError, match='not an archive of torch >= 1.6'):
    torch_files.open_file(path)
