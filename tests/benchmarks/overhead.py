"""Overhead of a run: its time against that of bare steps.

  PYTHONPATH=. python tests/benchmarks/overhead.py --size=cpu --steps=400

Runs `spacetime train` for so many steps with its checkpoints, metrics and
ledger as the preset has them (held-out measures and sheets off: they are asked
for, not overhead), then the very step alone on batches of the same pipeline.
Prints the ledger's seconds, and the share of time that is neither steps nor
data: (run - bare) / bare.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import jax

from experiments import digits_pixels
from spacetime import sharding
from spacetime.config import mesh as mesh_lib
from spacetime.config import networks, parse
from spacetime.data import batches
from spacetime.data import tokenizer as tokenizer_lib
from spacetime.training import metrics, run, state, step, tasks
from spacetime.training import optimizer as optimizer_lib


def bare(config, *, rounds: int) -> float:
  """Seconds of a step, the median over rounds of ten."""
  data, mesh = (
    parse.experiment(config).data,
    mesh_lib.mesh(parse.experiment(config)),
  )
  nets, settings = (
    networks.networks(parse.experiment(config)),
    parse.experiment(config).train,
  )
  task, move = (
    tasks.diffusion_task(parse.experiment(config), nets),
    optimizer_lib.make_optimizer(
      parse.experiment(config).optimizer, steps=config.train.steps
    ),
  )
  splits = data.source.open_splits(data, seed=config.seed)
  tokenizer = tokenizer_lib.train(
    splits.captions, vocab_size=config.text.vocab_size
  )
  iterator = iter(
    batches.make_loader(
      data, splits.train, tokenizer, length=nets.text_length, seed=config.seed
    )
  )
  key = jax.random.key(config.seed)
  at = state.init_state(task.init, key, move, mesh)
  compiled = jax.jit(
    step.make_step(task.loss, move, ema=settings.ema, limit=settings.limit),
    donate_argnums=0,
  )
  times = []
  with jax.set_mesh(mesh):
    for _ in range(rounds + 1):
      began = time.perf_counter()
      for _ in range(10):
        at, _ = compiled(at, {}, sharding.put_batch(next(iterator), mesh), key)
      jax.block_until_ready(at)
      times.append((time.perf_counter() - began) / 10)
  return statistics.median(times[1:])  # the first compiles


def main() -> None:
  """Bare steps before and after the run, so that drift shows."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', default='cpu')
  parser.add_argument('--data_dir', default='data')
  parser.add_argument('--steps', type=int, default=400)
  parser.add_argument('--rounds', type=int, default=10)
  flags = parser.parse_args()
  config = digits_pixels.get_config(flags.size)
  config.data.dir = flags.data_dir
  config.train.update(
    steps=flags.steps, evaluate_every=0, sheet_every=0, pca_init_clips=0
  )
  before = bare(config, rounds=flags.rounds)
  with tempfile.TemporaryDirectory() as workdir:
    run.train(config, workdir)
    lines = metrics.read_metrics(workdir)
    ledger = json.loads((pathlib.Path(workdir) / 'goodput.json').read_text())
  after = bare(config, rounds=flags.rounds)
  # Each line's step time holds all that happened since the line before.
  took = statistics.fmean(
    line['step_seconds'] for line in lines if 'step_seconds' in line
  )
  alone = (before + after) / 2
  print(f'ledger {ledger["seconds"]}')
  print(f'a step of the run {took:.4f} s; alone {before:.4f} and {after:.4f} s')
  print(f'overhead {100 * (took / alone - 1):.2f} %')


if __name__ == '__main__':
  main()
