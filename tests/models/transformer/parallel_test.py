"""Eight devices equal one: losses, gradients, and what they send."""

import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import digits_pixels
from spacetime import sharding
from spacetime.config import mesh as mesh_lib
from spacetime.config import networks, parse
from spacetime.training import optimizer as optimizer_lib
from spacetime.training import state as state_lib
from spacetime.training import step as step_lib
from spacetime.training import tasks


def make_config(**values):
  """A tiny config with eight heads, so that every axis can have all devices."""
  config = digits_pixels.get_config('tiny')
  with config.unlocked():
    config.update_from_flattened_dict(
      {
        'data.batch_size': 8,
        'text.length': 6,
        'text.kind': 'frozen',
        'model.heads': 8,
        'model.mlp': 64,
        'optimizer.name': 'adamw',
      }
      | values
    )
  return config


def batch():
  """Eight clips as two latent frames of 4 x 2 tokens."""
  frames = jax.random.randint(
    jax.random.key(1), (8, 5, 64, 32, 3), 0, 256, jnp.uint8
  )
  text = jax.random.normal(jax.random.key(2), (8, 6, 32))
  return {'frames': np.asarray(frames), 'text': np.asarray(text)}


@pytest.fixture(scope='module')
def params():
  """Parameters without a zero, so that all have gradients."""
  values = make_config()
  task = tasks.diffusion_task(
    parse.experiment(values), networks.networks(parse.experiment(values))
  )
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32),
    jax.eval_shape(task.init, jax.random.key(0)),
  )


def gradients(params, mesh):
  """Loss and gradients of a batch on a mesh, as numpy."""
  values = make_config()
  task = tasks.diffusion_task(
    parse.experiment(values), networks.networks(parse.experiment(values))
  )
  shardings = sharding.param_shardings(params, mesh)
  with jax.set_mesh(mesh):
    run = jax.jit(
      lambda params, batch: step_lib.gradients(
        task.loss, params, {}, batch, jax.random.key(4), accumulate=1
      ),
      out_shardings=(None, shardings),
    )
    params = jax.device_put(params, shardings)
    metrics, gradient = run(params, sharding.put_batch(batch(), mesh))
  return jax.device_get((metrics['loss'], gradient))


@pytest.fixture(scope='module')
def alone(params):
  one = sharding.single_device_mesh()
  return gradients(params, one)


@pytest.mark.slow
@pytest.mark.parametrize(
  'sizes',
  [
    dict(data=8),
    dict(data=1, fsdp=8),
    dict(data=1, context=8),
    dict(data=1, tensor=8),
    dict(data=1, fsdp=2, context=2, tensor=2, num_slices=2),
  ],
  ids=str,
)
def test_losses_and_gradients_equal_one_device(sizes, params, alone):
  loss, gradient = gradients(
    params, sharding.make_mesh(sharding.MeshConfig(**sizes))
  )
  np.testing.assert_allclose(loss, alone[0], rtol=1e-5)
  for got, want in zip(
    jax.tree.leaves(gradient), jax.tree.leaves(alone[1]), strict=True
  ):
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_state_shards_all_large_arrays(name):
  values = make_config(
    **{
      'optimizer.name': name,
      'optimizer.moments': 'bfloat16',
      'text.kind': 'trained',
    }
  )
  task = tasks.diffusion_task(
    parse.experiment(values), networks.networks(parse.experiment(values))
  )
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=4, context=2))
  state = state_lib.abstract_state(
    task.init,
    jax.random.key(0),
    optimizer_lib.make_optimizer(
      parse.experiment(values).optimizer, steps=values.train.steps
    ),
    mesh,
  )
  parts = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    shard = np.prod(leaf.sharding.shard_shape(leaf.shape))
    if leaf.size > 3072:  # the longest bias
      assert shard * 8 == leaf.size, sharding.path_name(path)
      parts += 1
  # Parameters, their average, and a moment or two.
  assert parts >= 3 * 15


@pytest.mark.slow
def test_kernels_are_gathered_in_compute_dtype(tmp_path):
  """Right after partitioning; CPUs widen what they send later."""
  values = make_config(**{'model.dtype': 'bfloat16', 'model.layers': 1})
  nets = networks.networks(parse.experiment(values))
  mesh = mesh_lib.mesh(parse.experiment(with_mesh(values, fsdp=8)))
  task = tasks.diffusion_task(parse.experiment(values), nets)
  params = jax.eval_shape(task.init, jax.random.key(0))
  params = jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
    params,
    sharding.param_shardings(params, mesh),
  )
  rows = sharding.batch_sharding(mesh)
  # A new program: a hit of the compilation cache would dump nothing.
  key = jax.random.key(time.time_ns() % 2**31)
  with jax.set_mesh(mesh):
    jax.jit(jax.grad(lambda *args: task.loss(*args, key)[0])).lower(
      params,
      {},
      {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
        for name, x in batch().items()
      },
    ).compile(
      compiler_options={
        'xla_dump_to': str(tmp_path),
        'xla_dump_hlo_pass_re': 'spmd-partitioning',
      }
    )
  (path,) = tmp_path.glob('*after_spmd-partitioning*')
  gathered = re.findall(
    r'= (\w+)\[([\d,]+)\]\S* all-gather\(', path.read_text()
  )
  width, mlp = 48, 64
  kernels = {f'{width},{width}', f'{width},{mlp}', f'{mlp},{width}'}
  dtypes = [dtype for dtype, shape in gathered if shape in kernels]
  # All but those of the timestep embedding, which computes in float32.
  assert dtypes.count('bf16') >= 10 and dtypes.count('f32') <= 2, gathered


def with_mesh(config, **sizes):
  """Changes the mesh of a config."""
  config.update_from_flattened_dict(
    {'mesh.data': 1} | {f'mesh.{k}': v for k, v in sizes.items()}
  )
  return config


@pytest.mark.parametrize(
  'tokens, sizes, model, text',
  [
    (
      16,
      dict(tensor=8),
      dict(heads=4),
      'mesh.tensor=8: expected a divisor of .*=4',
    ),
    (12, dict(context=8), {}, 'mesh.context=8: expected a divisor of the 12'),
    (
      16,
      dict(tensor=8),
      dict(mlp=60),
      'model.mlp=60: expected a multiple of .*=8',
    ),
    (
      16,
      {},
      dict(attention='splash'),
      "model.attention='splash': expected .* on 'cpu'",
    ),
    (
      16,
      dict(context=8),
      dict(heads=4, context_attention='ulysses'),
      "mesh.context=8: expected a divisor .*'ulysses'",
    ),
  ],
)
def test_check_model_refuses(tokens, sizes, model, text):
  values = make_config(**{f'model.{k}': v for k, v in model.items()})
  mesh = sharding.make_mesh(
    sharding.MeshConfig(**({'data': 1} | sizes if sizes else {}))
  )
  with pytest.raises(ValueError, match=text):
    mesh_lib.check_model(
      networks.networks(parse.experiment(values)).dit.config, tokens, mesh
    )


def test_devices_may_share_a_clip():
  """Four clips on eight devices."""
  values = make_config(**{'data.batch_size': 4})
  with pytest.raises(ValueError, match='`mesh.tensor` share a clip'):
    mesh_lib.mesh(parse.experiment(values))
  mesh = mesh_lib.mesh(parse.experiment(with_mesh(values, data=4, context=2)))
  rows = {name: x[:4] for name, x in batch().items()}
  sharded = sharding.put_batch(rows, mesh)
  assert sharded['text'].shape == (4, 6, 32)
  assert {s.data.shape for s in sharded['text'].addressable_shards} == {
    (1, 6, 32)
  }
