"""Held-out metrics are means over the held-out clips, whatever the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spacetime import sharding
from spacetime.training import hooks, means, state, tasks


@pytest.mark.parametrize('devices', [1, 2, 8])
def test_clips_that_fill_the_mesh_do_not_count(devices):
  def held_out(params, frozen, batch):
    value_B = params['w'] * batch['frames'][:, 0]
    return {'x': means.over_clips(value_B, batch.get('counted'))}

  mesh = sharding.make_mesh(
    sharding.MeshConfig(data=devices), devices=jax.devices()[:devices]
  )
  frames = np.arange(5.0, dtype=np.float32)[:, None] ** 2
  call = hooks.evaluator(
    tasks.Task(None, None, None, held_out),
    {},
    {'captions': [''] * 5, 'frames': frames},
    mesh,
  )
  at = state.State(None, None, {'w': jnp.float32(2)}, None)
  with jax.set_mesh(mesh):
    assert call(1, at) == {'x': pytest.approx(12.0)}
