"""One step of optimisation of Wan 2.1's 1.3B, random weights: time and memory.

  PYTHONPATH=. python tests/benchmarks/wan_step.py --rank=16
  PYTHONPATH=. python tests/benchmarks/wan_step.py --rank=0 --dtype=float32

--rank 0 trains every parameter: 28 GB of state and gradients in float32, where
low-rank pairs need the base in its dtype and their own state. Latents are of a
still of 480x832 (1,560 tokens), or of --frames latent frames of it.
"""

import argparse
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments import wan_t2v_1_3b
from spacetime import sharding
from spacetime.config import mesh as mesh_lib
from spacetime.config import networks, parse
from spacetime.training import optimizer as optimizer_lib
from spacetime.training import state, step, tasks


def main() -> None:
  """Builds the very step that `spacetime train` runs, and times it."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rank', type=int, default=16)
  parser.add_argument('--dtype', default='bfloat16', help='of base and compute')
  parser.add_argument('--frames', type=int, default=1, help='latent frames')
  parser.add_argument('--layers', type=int, default=30)
  parser.add_argument('--steps', type=int, default=2)
  parser.add_argument('--text', type=int, default=512, help='rows of text')
  flags = parser.parse_args()

  config = wan_t2v_1_3b.get_config('image')
  config.model.dtype, config.model.layers = flags.dtype, flags.layers
  config.lora.rank = flags.rank
  config.data.batch_size = 1
  nets, mesh = (
    networks.networks(parse.experiment(config)),
    mesh_lib.mesh(parse.experiment(config)),
  )
  task, move = (
    tasks.diffusion_task(parse.experiment(config), nets),
    optimizer_lib.make_optimizer(
      parse.experiment(config).optimizer, steps=config.train.steps
    ),
  )
  rng = np.random.default_rng(0)

  def drawn(leaf):
    # Constants would be as good for time, but not for what a loss is.
    array = rng.standard_normal(leaf.shape, np.float32) * 0.02
    return jnp.asarray(array, flags.dtype)

  frozen = {}
  if flags.rank:
    shapes = jax.eval_shape(nets.init, jax.random.key(0))['dit']
    frozen['dit'] = jax.tree.map(drawn, shapes)
  at = state.init_state(task.init, jax.random.key(0), move, mesh)
  batch = {
    'latents': rng.standard_normal((1, flags.frames, 60, 104, 16), np.float32),
    'text': rng.standard_normal((1, flags.text, 4096), np.float32),
  }
  batch = sharding.put_batch(batch, mesh)
  run = jax.jit(step.make_step(task.loss, move, ema=0.99), donate_argnums=0)
  with jax.set_mesh(mesh):
    for number in range(flags.steps):
      began = time.perf_counter()
      at, metrics = jax.block_until_ready(
        run(at, frozen, batch, jax.random.key(1))
      )
      what = 'compilation and step' if number == 0 else 'step'
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
      print(
        f'{what}: {time.perf_counter() - began:.1f} s, loss '
        f'{float(metrics["loss"]):.4f}, peak {peak:.2f} GiB',
        flush=True,
      )


if __name__ == '__main__':
  main()
