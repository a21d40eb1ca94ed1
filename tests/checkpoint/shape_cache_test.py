"""Shapes of parameters, found again without tracing."""

import jax
import jax.numpy as jnp
import pytest

from spacetime import sharding
from spacetime.checkpoint import load, shape_cache


def init(key):
  """Parameters of two dtypes."""
  wide = jax.random.normal(key, (2, 3))
  return {'dit': {'w': wide, 'b': jnp.zeros((), jnp.bfloat16)}, 'text': {}}


def refuse(key):
  raise AssertionError('traced')


def test_shapes_are_those_of_init_without_and_with_a_folder(tmp_path):
  expected = jax.eval_shape(init, jax.random.key(0))
  assert shape_cache.shapes(init, 'a') == expected
  assert shape_cache.shapes(init, 'a', tmp_path) == expected
  assert shape_cache.shapes(refuse, 'a', tmp_path) == expected


def test_other_settings_and_code_are_traced(tmp_path, monkeypatch):
  shape_cache.shapes(init, 'a', tmp_path)
  with pytest.raises(AssertionError, match='traced'):
    shape_cache.shapes(refuse, 'b', tmp_path)
  monkeypatch.setattr(shape_cache, 'code_version', lambda: 'other')
  with pytest.raises(AssertionError, match='traced'):
    shape_cache.shapes(refuse, 'a', tmp_path)


@pytest.mark.parametrize('text', ['', '[', '{"dit": 3}', '{"dit": [[2], "x"]}'])
def test_damaged_shapes_are_replaced(text, tmp_path):
  expected = shape_cache.shapes(init, 'a', tmp_path)
  (path,) = tmp_path.iterdir()
  path.write_text(text)
  assert shape_cache.shapes(init, 'a', tmp_path) == expected
  assert shape_cache.shapes(refuse, 'a', tmp_path) == expected


def test_a_model_opens_with_the_same_shapes(tmp_path):
  mesh = sharding.single_device_mesh()
  plain = load.open_model('digits', mesh=mesh)
  for _ in range(2):
    cached = load.open_model('digits', mesh=mesh, cache=tmp_path)
    for root in plain.shapes:
      assert cached.abstract(root) == plain.abstract(root)
  assert len(list(tmp_path.iterdir())) == 2  # the model and its autoencoder
