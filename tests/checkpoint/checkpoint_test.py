"""Checkpoints: bit-exact, atomic, on any mesh; weights; errors."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import time
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from spacetime import checkpoint
from spacetime.checkpoint import Checkpoints
from spacetime.checkpoint.interop import tensor_files

CONFIG = {'model': {'width': 24, 'patch': (1, 2, 2)}, 'train': {'steps': 9}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  step: Any
  params: Any
  ema: Any
  optimizer: Any


def make_state(seed=0, width=24):
  keys = jax.random.split(jax.random.key(seed), 3)
  params = {
    'block': {'kernel': jax.random.normal(keys[0], (8, width))},
    'bias': jax.random.normal(keys[1], (16,)),
    'head': jax.random.normal(keys[2], (3, 5), jnp.bfloat16),
  }
  ema = jax.tree.map(lambda p: p * 0.5, params)
  optimizer = optax.adamw(1e-3).init(params)
  return State(jnp.int32(seed), params, ema, optimizer)


def make_mesh(*shape):
  return jax.make_mesh(shape, ('a', 'b'), axis_types=(AxisType.Auto,) * 2)


def shardings(mesh, tree):
  def one(leaf):
    spec = PartitionSpec('a', 'b') if leaf.shape[:1] == (8,) else ()
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(one, tree)


def abstract(tree, mesh=None):
  if mesh is None:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    tree,
    shardings(mesh, tree),
  )


def assert_equal(tree, other):
  assert jax.tree.structure(tree) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def make_iterator():
  data = grain.MapDataset.range(60).seed(3).shuffle().repeat().batch(4)
  return iter(data.to_iter_dataset(grain.ReadOptions(2, 3)))


def write_run(workdir, *, steps=(4,), config=CONFIG):
  checkpoint.write_config(workdir, config, tokenizer=b'model')
  with Checkpoints(workdir) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step))


# -- state and data ------------------------------------------------------------


def test_saves_and_restores_bit_for_bit(tmp_path):
  state = make_state(7)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() is None
    checkpoints.save(7, state, wait=True)
    assert checkpoints.latest_step() == 7
  with Checkpoints(tmp_path) as checkpoints:
    assert_equal(checkpoints.restore(abstract(state)), state)


def test_donation_right_after_save_changes_nothing(tmp_path):
  bump = jax.jit(
    lambda state: jax.tree.map(lambda a: a + 1, state), donate_argnums=0
  )
  big = {'x': jnp.arange(1 << 20, dtype=jnp.float32), 'step': jnp.int32(0)}
  want = jax.tree.map(np.array, big)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, big)
    for _ in range(20):
      big = bump(big)
    jax.block_until_ready(big)
    checkpoints.wait()
    assert_equal(checkpoints.restore(abstract(big)), want)


def test_data_goes_on_where_it_was_at_the_save(tmp_path):
  iterator, state = make_iterator(), make_state()
  for _ in range(3):
    next(iterator)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, state, iterator=iterator)
    want = [next(iterator) for _ in range(5)]
    checkpoints.wait()
    other = make_iterator()
    checkpoints.restore(abstract(state), iterator=other)
  np.testing.assert_array_equal(want, [next(other) for _ in range(5)])


@pytest.mark.parametrize('shape', [(1, 8), (4, 2), (2, 1)])
def test_restores_onto_another_mesh(tmp_path, shape):
  state = make_state(5)
  old = make_mesh(2, 4)
  state = jax.device_put(state, shardings(old, state))
  new = jax.make_mesh(
    shape,
    ('a', 'b'),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[: shape[0] * shape[1]],
  )
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(5, state, wait=True)
    restored = checkpoints.restore(abstract(state, new))
  assert_equal(restored, state)
  for leaf, sharding in zip(
    jax.tree.leaves(restored),
    jax.tree.leaves(shardings(new, state)),
    strict=True,
  ):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_keeps_the_newest(tmp_path):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (1, 3, 8):
      checkpoints.save(step, make_state(step))
    checkpoints.wait()
    names = {p.name for p in (tmp_path / 'checkpoints').iterdir()}
    assert names == {'3', '8'}
    restored = checkpoints.restore(abstract(make_state()), step=3)
  assert_equal(restored, make_state(3))


def test_a_step_saved_twice_stands_and_an_earlier_one_is_refused(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(4, make_state(4), wait=True)
    checkpoints.save(4, make_state(5), wait=True)
    assert_equal(checkpoints.restore(abstract(make_state())), make_state(4))
    with pytest.raises(ValueError, match='step 3 comes before step 4 '):
      checkpoints.save(3, make_state(3))


def test_half_written_steps_are_swept_away_and_said_so(tmp_path, caplog):
  write_run(tmp_path, steps=(2, 5))
  steps = tmp_path / 'checkpoints'
  shutil.copytree(steps / '5', steps / '9.orbax-checkpoint-tmp')
  shutil.copytree(steps / '5', steps / '8')
  shutil.rmtree(steps / '8' / 'state')
  # A reader goes round them.
  ema = checkpoint.load_params(tmp_path, abstract(make_state().ema))
  assert_equal(ema, make_state(5).ema)
  with caplog.at_level('WARNING'), Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() == 5
    assert_equal(checkpoints.restore(abstract(make_state())), make_state(5))
  for name in ('9.orbax-checkpoint-tmp', '8'):
    assert f'{steps / name}: half-written; removed' in caplog.text
    assert not (steps / name).exists()


KILLED = """
import sys
import jax
import jax.numpy as jnp
from spacetime.checkpoint import Checkpoints

@jax.jit
def make(step):
  draw = lambda i: jax.random.normal(jax.random.key(step * 9 + i), (1 << 19,))
  return {'step': step, 'x': [draw(i) for i in range(4)]}

with Checkpoints(sys.argv[1], keep=2) as checkpoints:
  step = checkpoints.latest_step() or 0
  state = make(jnp.int32(step))
  if step:
    abstract = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state
    )
    restored = checkpoints.restore(abstract)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state)):
      assert (a == b).all()
  print('restored', step, flush=True)
  while True:
    step += 1
    checkpoints.save(step, make(jnp.int32(step)))
    print('begun', step, flush=True)
"""


@pytest.mark.slow
def test_kill_in_the_middle_of_a_save_loses_nothing_older(tmp_path):
  """SIGKILL at random moments; what was whole before restores bit for bit."""
  moments, last, half = random.Random(0), 0, 0
  for _ in range(5):
    process = subprocess.Popen(
      [sys.executable, '-c', KILLED, str(tmp_path)],
      cwd=pathlib.Path(__file__).parents[2],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    try:
      line = process.stdout.readline()
      assert line.startswith('restored'), process.stderr.read()
      assert int(line.split()[1]) >= last
      for _ in range(moments.randint(2, 4)):
        # The save begun before this one is whole when this one begins.
        last = int(process.stdout.readline().split()[1]) - 1
      time.sleep(moments.random() * 0.03)
    finally:
      process.kill()
      process.communicate()
    names = [p.name for p in (tmp_path / 'checkpoints').iterdir()]
    half += any(not name.isdigit() for name in names)
  assert half, 'no kill met a save: the test showed nothing'
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest_step() >= last


CLUSTER = """
import sys
import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from spacetime import checkpoint

workdir, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'localhost:{port}', 2, index)
mesh = jax.make_mesh((4,), ('a',), axis_types=(AxisType.Auto,))
value = np.arange(24, dtype=np.float32).reshape(8, 3)
state = {'ema': {'x': jax.make_array_from_callback(
  (8, 3), NamedSharding(mesh, PartitionSpec('a')), lambda at: value[at]
)}}

def make_iterator():
  data = grain.MapDataset.range(40)[index::2].batch(2)
  return iter(data.to_iter_dataset())

def check(x):
  for shard in x.addressable_shards:
    np.testing.assert_array_equal(shard.data, value[shard.index])

iterator = make_iterator()
next(iterator)
checkpoint.write_config(workdir, {'width': 24}, tokenizer=b'model')
with checkpoint.Checkpoints(workdir, keep=2) as checkpoints:
  for step in (3, 4, 5):
    checkpoints.save(step, state, iterator=iterator)
want = next(iterator)
abstract = jax.tree.map(
  lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
)
with checkpoint.Checkpoints(workdir) as checkpoints:
  assert checkpoints.latest_step() == 5
  other = make_iterator()
  check(checkpoints.restore(abstract, iterator=other)['ema']['x'])
  np.testing.assert_array_equal(next(other), want)
check(checkpoint.load_params(workdir, abstract['ema'])['x'])
print('equal', want.tolist(), flush=True)
"""


@pytest.mark.slow
def test_two_processes_save_and_restore(tmp_path):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = str(probe.getsockname()[1])
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', CLUSTER, str(tmp_path), port, str(i)],
      cwd=pathlib.Path(__file__).parents[2],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=120) for process in processes]
  finally:
    for process in processes:
      process.kill()
  for i, (out, error) in enumerate(outputs):
    assert f'equal [{4 + i}, {6 + i}]\n' in out, error
  names = {p.name for p in (tmp_path / 'checkpoints').iterdir()}
  assert names == {'4', '5'}


# -- config and tokenizer ------------------------------------------------------


def test_config_and_tokenizer_lie_beside(tmp_path):
  write_run(tmp_path)
  assert checkpoint.read_config(tmp_path) == json.loads(json.dumps(CONFIG))
  assert checkpoint.read_tokenizer(tmp_path) == b'model'
  checkpoint.write_config(tmp_path, CONFIG, tokenizer=b'model')


def test_another_config_is_refused_unless_free(tmp_path):
  write_run(tmp_path)
  other = {'model': {'width': 32, 'patch': (1, 2, 2)}, 'train': {'steps': 12}}
  assert checkpoint.config_changes(CONFIG, other) == {
    'model.width': (24, 32),
    'train.steps': (9, 12),
  }
  with pytest.raises(
    ValueError,
    match='another config: model.width: 24 -> 32; restore these values',
  ):
    checkpoint.write_config(tmp_path, other, free=('train',))
  assert checkpoint.read_config(tmp_path)['train']['steps'] == 9
  checkpoint.write_config(tmp_path, other, free=('train.steps', 'model.width'))
  assert checkpoint.read_config(tmp_path)['train']['steps'] == 12
  with pytest.raises(ValueError, match='another tokenizer; '):
    checkpoint.write_config(tmp_path, other, tokenizer=b'other')


# -- parameters alone ----------------------------------------------------------


@pytest.mark.parametrize('tree', ['ema', 'params'])
def test_loads_one_tree_onto_a_mesh(tmp_path, tree):
  write_run(tmp_path)
  want = getattr(make_state(4), tree)
  target = abstract(want, make_mesh(4, 2))
  loaded = checkpoint.load_params(tmp_path, target, tree=tree)
  assert_equal(loaded, want)
  kernel = target['block']['kernel']
  assert loaded['block']['kernel'].sharding == kernel.sharding


def test_loads_a_tree_beside_data_and_in_another_dtype(tmp_path):
  checkpoint.write_config(tmp_path, CONFIG)
  state = make_state(2)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(2, state, iterator=make_iterator())
  cast = jax.tree.map(lambda a: a.astype(jnp.bfloat16), state.ema)
  assert_equal(checkpoint.load_params(tmp_path, abstract(cast)), cast)


def bytes_read():
  (metric,) = tensorstore.experimental_collect_matching_metrics(
    '/tensorstore/kvstore/file/bytes_read'
  )
  return metric['values'][0]['value']


def test_one_tree_reads_no_other(tmp_path):
  """Parameters, EMA and two moments: a quarter of the bytes."""
  checkpoint.write_config(tmp_path, CONFIG)
  state = make_state(0, width=8192)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, jax.tree.map(lambda a: a + 0.37, state), wait=True)
    start = bytes_read()
    checkpoints.restore(abstract(state))
    full = bytes_read() - start
  start = bytes_read()
  checkpoint.load_params(tmp_path, abstract(state.ema))
  assert 0 < bytes_read() - start < 0.55 * full


def test_weights_round_trip(tmp_path):
  params, folder = make_state(3).ema, tmp_path / 'release'
  for _ in range(2):  # The second time it is there already, and equal.
    checkpoint.save_weights(folder, params, config=CONFIG, tokenizer=b'a model')
  assert [p.name for p in tmp_path.iterdir()] == ['release']
  assert {p.name for p in folder.iterdir()} == {
    'config.json',
    'tokenizer.model',
    'weights.safetensors',
  }
  loaded = checkpoint.load_params(folder, abstract(params, make_mesh(4, 2)))
  assert_equal(loaded, params)
  assert checkpoint.read_config(folder)['model']['width'] == 24
  assert checkpoint.read_tokenizer(folder) == b'a model'


def test_hashes_name_the_arrays(tmp_path):
  for seed in (1, 2):
    checkpoint.save_weights(
      tmp_path / f'w{seed}', make_state(seed).ema, config=CONFIG
    )
  write_run(tmp_path / 'run', steps=(3, 4))
  hashes = [
    checkpoint.weights_hash(tmp_path / 'w1'),
    checkpoint.weights_hash(tmp_path / 'w2'),
    checkpoint.weights_hash(tmp_path / 'run'),
    checkpoint.weights_hash(tmp_path / 'run', step=3),
  ]
  assert len(set(hashes)) == 4
  assert all(len(h) == 16 and int(h, 16) >= 0 for h in hashes)
  assert hashes[2] == checkpoint.weights_hash(tmp_path / 'run', step=4)


@pytest.mark.parametrize(
  'value, dtype, text',
  [
    (70_000.0, np.float16, 'a/b: expected finite.*at most 65504: set `dtype`'),
    (np.nan, np.float32, 'a/b: expected finite numbers'),
  ],
)
def test_no_file_gets_values_that_its_dtype_cannot_hold(
  tmp_path, value, dtype, text
):
  with np.errstate(over='ignore'):
    params = {'a': {'b': np.full(3, value).astype(dtype)}}
  with pytest.raises(ValueError, match=text):
    checkpoint.save_weights(tmp_path / 'x', params, config=CONFIG)
  assert not (tmp_path / 'x').exists()
  path = tmp_path / 'x.safetensors'
  file = tensor_files.File(path, {'a/b': ((3,), np.dtype(dtype))})
  with pytest.raises(ValueError, match=text):
    file.put('a/b', np.full(3, value))


def test_save_weights_overwrites_nothing_else(tmp_path):
  params, folder = make_state().ema, tmp_path / 'release'
  checkpoint.save_weights(folder, params, config=CONFIG)
  before = checkpoint.weights_hash(folder)
  with pytest.raises(ValueError, match='holds something else'):
    checkpoint.save_weights(folder, make_state(9).ema, config=CONFIG)
  assert checkpoint.weights_hash(folder) == before
  other = tmp_path / 'letters'
  other.mkdir()
  checkpoint.save_weights(other, params, config=CONFIG)  # Empty: taken.
  (tmp_path / 'file').write_text('dear')
  with pytest.raises(ValueError, match='holds something else'):
    checkpoint.save_weights(tmp_path / 'file', params, config=CONFIG)
  assert (tmp_path / 'file').read_text() == 'dear'


# -- bad input -----------------------------------------------------------------


def test_no_checkpoint_there(tmp_path):
  target = abstract(make_state().ema)
  with pytest.raises(ValueError, match='does not exist'):
    checkpoint.load_params(tmp_path / 'absent', target)
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='is a file; expected the directory'):
    checkpoint.read_config(tmp_path / 'file')
  with pytest.raises(ValueError, match='is not a checkpoint; expected config.'):
    checkpoint.weights_hash(tmp_path)
  run = tmp_path / 'run'
  checkpoint.write_config(run, CONFIG)
  (run / 'checkpoints' / '3.orbax-checkpoint-tmp').mkdir(parents=True)
  with pytest.raises(ValueError, match='no complete checkpoint, only 1 half-w'):
    checkpoint.load_params(run, target)
  with pytest.raises(ValueError, match='has no tokenizer.model'):
    checkpoint.read_tokenizer(run)
  (run / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='is not JSON'):
    checkpoint.read_config(run)


def test_step_and_keep(tmp_path):
  write_run(tmp_path, steps=(2, 5))
  with pytest.raises(ValueError, match=r'no step 3; expected one of \[2, 5\]'):
    checkpoint.load_params(tmp_path, abstract(make_state().ema), step=3)
  with pytest.raises(ValueError, match='keep=0: expected 1 or more'):
    Checkpoints(tmp_path, keep=0)


def test_another_model(tmp_path):
  write_run(tmp_path)
  weights = tmp_path / 'weights'
  checkpoint.save_weights(weights, make_state(4).ema, config=CONFIG)
  other = make_state(width=32).ema
  other['extra'] = other.pop('bias')
  message = (
    r'is of another model; missing: extra; unexpected: bias; of other '
    r'shapes: block/kernel \(8, 24\), expected \(8, 32\)'
  )
  for folder in (tmp_path, weights):
    with pytest.raises(ValueError, match=message):
      checkpoint.load_params(folder, abstract(other))
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(ValueError, match=r'params/block/kernel \(8, 24\), exp'):
      checkpoints.restore(abstract(make_state(width=32)))


def test_many_faults_are_cut_short(tmp_path):
  weights = tmp_path / 'weights'
  params = {f'p{i:02d}': jnp.zeros((2,)) for i in range(12)}
  checkpoint.save_weights(weights, params, config=CONFIG)
  with pytest.raises(ValueError, match='unexpected: p00, .* p07 and 3 more'):
    checkpoint.load_params(weights, abstract({'p11': params['p11']}))


# Orbax closes its event loop on readers still at work when one of them fails.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_damaged_files(tmp_path):
  weights, run = tmp_path / 'weights', tmp_path / 'run'
  params = make_state().ema
  checkpoint.save_weights(weights, params, config=CONFIG)
  path = weights / 'weights.safetensors'
  path.write_bytes(path.read_bytes()[:-7])
  with pytest.raises(ValueError, match='cannot be read .*it is damaged'):
    checkpoint.load_params(weights, abstract(params))
  write_run(run)
  for path in (run / 'checkpoints' / '4' / 'state').rglob('d/*'):
    path.unlink()
  with pytest.raises(ValueError, match='checkpoints/4 cannot be read .*damage'):
    checkpoint.load_params(run, abstract(params))
  with Checkpoints(run) as checkpoints:
    with pytest.raises(ValueError, match='it is damaged'):
      checkpoints.restore(abstract(make_state()))
  (run / 'checkpoints' / '4' / 'state' / '_METADATA').write_text('')
  with pytest.raises(ValueError, match='checkpoints/4 cannot be read'):
    checkpoint.load_params(run, abstract(params))


def test_no_position_in_the_data(tmp_path):
  state = make_state()
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, wait=True)
    with pytest.raises(ValueError, match='no position in the data'):
      checkpoints.restore(abstract(state), iterator=make_iterator())


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  for call in (
    lambda: Checkpoints(tmp_path / 'file' / 'run'),
    lambda: checkpoint.write_config(tmp_path / 'file' / 'run', CONFIG),
    lambda: checkpoint.save_weights(
      tmp_path / 'file' / 'run', {}, config=CONFIG
    ),
  ):
    with pytest.raises(ValueError, match='cannot be written'):
      call()


def test_places_in_the_data_of_other_processes(tmp_path):
  """One for all goes on anywhere; places of their own only on as many."""
  state, iterator = make_state(), make_iterator()
  next(iterator)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, iterator=iterator, wait=True)
    data = tmp_path / 'checkpoints' / '1' / 'data'
    saved = data / 'process_0-of-1.json'
    for i in range(2):
      shutil.copy(saved, data / f'process_{i}-of-2.json')
    saved.unlink()
    other = make_iterator()
    checkpoints.restore(abstract(state), iterator=other)
    np.testing.assert_array_equal(next(iterator), next(other))
    (data / 'process_1-of-2.json').write_text('{}')
    with pytest.raises(ValueError, match='2 processes have different'):
      checkpoints.restore(abstract(state), iterator=make_iterator())
