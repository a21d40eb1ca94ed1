"""What learns faster at equal compute: variants of training, on close-ups.

  PYTHONPATH=. python tests/benchmarks/learning.py --out=runs/learning

Trains each variant (learning_variants.py) from nothing on close-ups of one
character, for the same number of FLOPs, with several seeds, and prints a table:
the held-out loss, the per cent of it that a wrong digit in the caption costs,
and the share of right digits in sampled close-ups, as mean and standard error
over seeds. Finished runs are in OUT/results.jsonl and are not repeated: the
command may be stopped.
"""

import argparse
import json
import pathlib
import statistics
import time

import jax
import tqdm

from spacetime.config import parse
from spacetime.training import init_state, setup, state, step
from tests.benchmarks import close_ups, learning_variants

PROBED = 'probe/digit_t0.7'
MEASURES = ('held_out/loss', PROBED, 'world/digit')


def main() -> None:
  """Trains what is missing; prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', default='runs/learning')
  parser.add_argument('--steps', type=int, default=300, help='of the base')
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument(
    '--variants',
    default=','.join(variant.name for variant in learning_variants.VARIANTS),
  )
  flags = parser.parse_args()
  out = pathlib.Path(flags.out)
  out.mkdir(parents=True, exist_ok=True)
  jax.config.update('jax_compilation_cache_dir', str(out / 'programs'))
  path = out / 'results.jsonl'
  results = read(path)
  known = {variant.name: variant for variant in learning_variants.VARIANTS}
  for seed in range(flags.seeds):
    for name in flags.variants.split(','):
      key = dict(variant=name, seed=seed, base_steps=flags.steps)
      if any(key.items() <= line.items() for line in results):
        continue
      line = measure(known[name], seed=seed, steps=flags.steps, out=out)
      with path.open('a', encoding='utf-8') as file:
        file.write(json.dumps(key | line) + '\n')
      results = read(path)
  print(table([x for x in results if x['base_steps'] == flags.steps]))


def read(path: pathlib.Path) -> list[dict]:
  """The lines of finished runs."""
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def measure(variant, *, seed: int, steps: int, out: pathlib.Path) -> dict:
  """Trains one variant with one seed, and measures its averaged weights."""
  config = close_ups.get_config(variant.config)
  folder = out / 'unused'  # nothing is written there
  run = setup.check(parse.experiment(config), str(folder))
  costs = close_ups.training_flops(run, variant.clips)
  base = close_ups.training_flops(run, learning_variants.CLIPS)
  budget = steps * base['step']
  pretraining = 0.0
  if variant.pretrain:
    pretraining = learning_variants.CAPTION_STEPS * costs['text']
  cost = variant.flops(costs['step'], costs['block'])
  count = round((budget - pretraining) / cost)
  config.train.steps = count
  run = setup.check(parse.experiment(config), str(folder))
  tokenizer = close_ups.get_tokenizer(run, out)
  draw = close_ups.Draw(
    run, tokenizer, seed=seed, caption=variant.caption, clips=variant.clips
  )
  loss = variant.loss(close_ups.base_loss(run))
  jitted = jax.jit(
    step.make_step(
      loss.loss, run.optimizer, ema=variant.average, draw=loss.draw
    )
  )
  key = jax.random.key(seed)
  at = init_state.init_state(run, None, jax.random.fold_in(key, 1))
  if variant.pretrain:
    tokens = [
      draw(-1 - i)['tokens'] for i in range(learning_variants.CAPTION_STEPS)
    ]
    text = learning_variants.pretrained_text(
      run.nets, at.params['text'], tokens
    )
    at = state.state_from(at.params | {'text': text}, run.optimizer, run.mesh)
  began = time.process_time()
  bar = tqdm.tqdm(
    range(count), desc=f'{variant.name}, seed {seed}', unit='step'
  )
  for number in bar:
    frozen = run.frozen | {'teacher': at.ema}
    at, metrics = jitted(at, frozen, draw(number), key)
    if number % 10 == 0:
      bar.set_postfix(loss=f'{float(metrics["loss"]):.4f}')
  seconds = time.process_time() - began
  scores = close_ups.scorer(run, tokenizer, out)
  return dict(
    steps=count,
    flops=pretraining + count * cost,
    seconds=round(seconds, 1),
    **scores(at.ema, f'{variant.name}-{seed}')[0],
  )


def table(results: list[dict]) -> str:
  """The measures as rows of Markdown, mean and standard error over seeds."""
  rows = ['| variant | steps | held-out loss | wrong digit | digits right |']
  rows.append('| --- | --- | --- | --- | --- |')
  groups = {}
  for line in results:
    groups.setdefault(line['variant'], []).append(line)
  for name, lines in groups.items():
    cells = []
    for measured in MEASURES:
      values = [line[measured] for line in lines]
      cell = f'{statistics.mean(values):.4g}'
      if len(values) > 1:
        error = statistics.stdev(values) / len(values) ** 0.5
        cell += f' ± {error:.2g}'
      cells.append(cell)
    rows.append(f'| {name} | {lines[0]["steps"]} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(rows)


if __name__ == '__main__':
  main()
