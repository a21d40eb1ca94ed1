"""Clips a second of packed rows against padded batches of the same clips.

  PYTHONPATH=. python tests/benchmarks/packing.py --rounds=6

Padded batches hold one clip a row, as long as the longest. Both come through
the whole pipeline and the very step that `spacetime train` runs; the rounds of
either kind alternate, so that what else the machine does falls on both. Prints
clips a second, the padding of each, and the ratio (bar: 1.5).
"""

import argparse
import statistics
import time

import jax
import numpy as np

from experiments import digits_mixed
from spacetime import sharding
from spacetime.config import mesh, networks, packing, parse
from spacetime.data import batches
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.training import optimizer as optimizer_lib
from spacetime.training import state, step, tasks


def padded(config):
  """The config with one clip a row, and as many tokens a batch."""
  config = config.copy_and_resolve_references()
  nets = networks.networks(parse.experiment(config))
  shapes = parse.experiment(config).data.mixed.shapes
  grids = [
    networks.clip_geometry(parse.experiment(config).data, nets, shape)
    for shape in shapes
  ]
  longest = max(grid.tokens for grid in grids)
  tokens = config.data.batch_size * config.data.packing.length
  config.data.packing.length, config.data.packing.clips = longest, 1
  config.data.packing.frames = max(grid.grid[0] for grid in grids)
  config.data.packing.look_ahead = 1
  config.data.batch_size = round(tokens / longest)
  return config


class Side:
  """One way of batching, with its own state."""

  def __init__(self, config, splits, tokenizer):
    nets = networks.networks(parse.experiment(config))
    data = parse.experiment(config).data
    patchify = packing.make_patchify(
      parse.experiment(config), nets.autoencoder, nets.dit.config.patch
    )
    self.iterator = iter(
      batches.make_loader(
        data,
        splits.train,
        tokenizer,
        length=nets.text_length,
        seed=0,
        patchify=patchify,
      )
    )
    task, optimizer = (
      tasks.diffusion_task(parse.experiment(config), nets),
      optimizer_lib.make_optimizer(
        parse.experiment(config).optimizer, steps=config.train.steps
      ),
    )
    self.mesh, self.key = mesh.mesh(parse.experiment(config)), jax.random.key(0)
    self.state = state.init_state(task.init, self.key, optimizer, self.mesh)
    train_step = step.make_step(task.loss, optimizer, ema=0.99)
    self.step = jax.jit(train_step, donate_argnums=0)
    self.rates, self.padding = [], []

  def run(self, steps: int) -> None:
    """A round."""
    count, began = 0, time.perf_counter()
    for _ in range(steps):
      batch = next(self.iterator)
      count += int((batch['grids'][..., 0] > 0).sum())
      self.padding.append(np.mean(batch['segment_ids'] == 0))
      with jax.set_mesh(self.mesh):
        put = sharding.put_batch(batch, self.mesh)
        self.state, _ = self.step(self.state, {}, put, self.key)
    jax.block_until_ready(self.state)
    self.rates.append(count / (time.perf_counter() - began))


def main() -> None:
  """Alternates the two, a round of compilation first."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='cpu')
  parser.add_argument('--data_dir', default='data')
  parser.add_argument('--clips', type=int, default=1000, help='to render')
  parser.add_argument('--rounds', type=int, default=6)
  parser.add_argument('--steps', type=int, default=5, help='in a round')
  flags = parser.parse_args()

  config = digits_mixed.get_config(flags.size)
  config.data.dir, config.data.clips = flags.data_dir, flags.clips
  config.data.held_out_clips = 4
  data = parse.experiment(config).data
  splits = data.source.open_splits(data, seed=config.seed)
  tokenizer = tokenizer_lib.train(
    splits.captions, vocab_size=config.text.vocab_size
  )
  sides = {
    'packed': Side(config, splits, tokenizer),
    'padded': Side(padded(config), splits, tokenizer),
  }
  for number in range(flags.rounds + 1):
    for side in sides.values():
      side.run(flags.steps)
      if not number:  # the first round compiles
        side.rates.clear()
  medians = {n: statistics.median(side.rates) for n, side in sides.items()}
  for name, side in sides.items():
    print(
      f'{name}: {medians[name]:.2f} clips a second, padding '
      f'{np.mean(side.padding):.3f}'
    )
  print(f'ratio {medians["packed"] / medians["padded"]:.2f}')


if __name__ == '__main__':
  main()
