"""Step time with the real pipeline against step time with one cached batch.

  PYTHONPATH=. python tests/benchmarks/step_time.py --size=cpu --rounds=6

Rounds of either kind alternate, so that what else the machine does falls on
both. Prints the medians, their ratio, and model FLOP/s.
"""

import argparse
import statistics
import time

import jax

from experiments import digits_pixels
from spacetime import sharding
from spacetime.config import mesh as mesh_lib
from spacetime.config import networks, parse
from spacetime.data import batches
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.training import optimizer as optimizer_lib
from spacetime.training import state, step, tasks


def main() -> None:
  """Builds the very step that `spacetime train` runs, and times it."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='cpu')
  parser.add_argument('--data_dir', default='data')
  parser.add_argument('--rounds', type=int, default=6)
  parser.add_argument('--steps', type=int, default=5, help='in a round')
  flags = parser.parse_args()

  config = digits_pixels.get_config(flags.size)
  config.data.dir = flags.data_dir
  data, mesh = (
    parse.experiment(config).data,
    mesh_lib.mesh(parse.experiment(config)),
  )
  nets = networks.networks(parse.experiment(config))
  task, optimizer = (
    tasks.diffusion_task(parse.experiment(config), nets),
    optimizer_lib.make_optimizer(
      parse.experiment(config).optimizer, steps=config.train.steps
    ),
  )
  splits = data.source.open_splits(data, seed=config.seed)
  tokenizer = tokenizer_lib.train(
    splits.captions, vocab_size=config.text.vocab_size
  )
  loader = batches.make_loader(
    data, splits.train, tokenizer, length=nets.text_length, seed=config.seed
  )
  iterator = iter(loader)
  key = jax.random.key(config.seed)
  at = state.init_state(task.init, key, optimizer, mesh)
  compiled = jax.jit(
    step.make_step(task.loss, optimizer, ema=0.99), donate_argnums=0
  )
  cached = next(iterator)
  times = {'pipeline': [], 'cached': []}
  with jax.set_mesh(mesh):
    for number in range(flags.rounds + 1):
      for kind in times:
        began = time.perf_counter()
        for _ in range(flags.steps):
          batch = next(iterator) if kind == 'pipeline' else cached
          at, _ = compiled(at, {}, sharding.put_batch(batch, mesh), key)
        jax.block_until_ready(at)
        if number:  # the first round compiles
          times[kind].append((time.perf_counter() - began) / flags.steps)
  medians = {kind: statistics.median(each) for kind, each in times.items()}
  for kind, seconds in medians.items():
    rates = tasks.rates(parse.experiment(config), nets).per_second(1, seconds)
    print(kind, {name: round(value, 4) for name, value in rates.items()})
  print(f'ratio {medians["pipeline"] / medians["cached"]:.3f}')


if __name__ == '__main__':
  main()
