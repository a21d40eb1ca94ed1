"""Programs of earlier commands: found without tracing, and by nothing less than
all that they depend on."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import sharding
from spacetime.checkpoint import shape_cache
from spacetime.pipeline import pipeline as pipeline_lib
from spacetime.pipeline import program_cache
from spacetime.pipeline.engine import Program
from tests.helpers import published_folder

MESH = sharding.single_device_mesh
X = np.arange(4, dtype=np.float32)


class Traced(Exception):
  """A function was traced, though its program is in the folder."""


def call(folder, function, *args, model='model', name='name', **options):
  """Runs a function by the programs of a folder."""
  cache = program_cache.ProgramCache(folder, model, MESH())
  get = lambda *more: cache.get(name, *more)  # noqa: E731
  program = Program(function, contextlib.nullcontext, get=get, **options)
  return jax.device_get(program(*args))


def refuse(*args):
  """In place of the function of a program that is in the folder."""
  raise Traced


def double(tree):
  return {'y': 2 * tree['x']}


def test_a_program_is_loaded_without_tracing(tmp_path):
  expected = call(tmp_path, double, {'x': X})
  assert call(tmp_path, refuse, {'x': X})['y'].tolist() == [0, 2, 4, 6]
  assert expected['y'].tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize(
  'changes, x',
  [
    ({'model': 'another model'}, X),
    ({'name': ('step', 'other settings')}, X),
    ({}, X[:2]),
    ({}, X.astype(np.int32)),
  ],
)
def test_another_one_is_compiled_anew(changes, x, tmp_path):
  call(tmp_path, double, {'x': X})
  with pytest.raises(Traced):
    call(tmp_path, refuse, {'x': x}, **changes)


def test_other_structures_options_and_code_are_compiled_anew(
  tmp_path, monkeypatch
):
  call(tmp_path, double, {'x': X})
  with pytest.raises(Traced):
    call(tmp_path, refuse, {'z': X})
  with jax.numpy_rank_promotion('raise'), pytest.raises(Traced):
    call(tmp_path, refuse, {'x': X})
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')
  with pytest.raises(Traced):
    call(tmp_path, refuse, {'x': X})
  monkeypatch.undo()
  monkeypatch.setattr(shape_cache, 'code_version', lambda: 'other')
  with pytest.raises(Traced):
    call(tmp_path, refuse, {'x': X})


@pytest.mark.parametrize('damage', [b'', b'x' * 100, None])
def test_a_damaged_program_is_replaced(damage, tmp_path):
  call(tmp_path, double, {'x': X})
  (path,) = tmp_path.glob('*.program')
  data = path.read_bytes()
  path.write_bytes(data[:-1] + b'?' if damage is None else damage)
  assert call(tmp_path, double, {'x': X})['y'].tolist() == [0, 2, 4, 6]
  assert call(tmp_path, refuse, {'x': X})['y'].tolist() == [0, 2, 4, 6]


def test_donated_arguments_and_keys_work_from_the_folder(tmp_path):
  def add(x, key):
    return x + jax.random.normal(key, x.shape), key

  results = [
    call(tmp_path, add, jnp.asarray(X), jax.random.key(3), donate_argnums=0)
    for _ in range(2)
  ]
  assert results[0][0].tobytes() == results[1][0].tobytes()
  assert results[1][1] == jax.random.key(3)


def test_programs_used_longest_ago_go(tmp_path, monkeypatch):
  call(tmp_path, double, {'x': X})
  (first,) = tmp_path.glob('*.program')
  monkeypatch.setattr(
    program_cache, 'MOST_BYTES', int(1.5 * first.stat().st_size)
  )
  call(tmp_path, double, {'x': X[:2]})
  (left,) = tmp_path.glob('*.program')
  assert left != first


def test_a_folder_that_cannot_be_written_only_keeps_nothing(tmp_path):
  path = tmp_path / 'file'
  path.write_text('no folder')
  assert call(path, double, {'x': X})['y'].tolist() == [0, 2, 4, 6]


@pytest.mark.slow
def test_a_model_samples_the_same_frames_from_the_folder(tmp_path, monkeypatch):
  published_folder.write(tmp_path / 'wan')
  settings = dict(
    prompt='x', frames=5, size='32x16', steps=2, prompt_embeds_cache=''
  )
  frames, traced = [], []
  lower = Program.lower
  monkeypatch.setattr(
    Program, 'lower', lambda *a, **k: (traced.append(1), lower(*a, **k))[1]
  )
  compile_ = program_cache.ProgramCache._compile
  monkeypatch.setattr(
    program_cache.ProgramCache,
    '_compile',
    lambda *args: (traced.append(args[1].name), compile_(*args))[1],
  )
  counts = []
  for cache in (None, tmp_path / 'cache', tmp_path / 'cache'):
    traced.clear()
    pipe = pipeline_lib.Pipeline(
      str(tmp_path / 'wan'), program_cache=cache, progress=False
    )
    frames.append(pipe(**settings).frames.tobytes())
    counts.append(len(traced))
  assert counts[0] == 0 and counts[1] >= 5 and counts[2] == 0
  assert frames[0] == frames[1] == frames[2]
