"""What more compute buys: the same prompts and seeds at three budgets, and the
held-out loss of two widths against FLOPs.

  PYTHONPATH=. python tests/benchmarks/compute.py --out=runs/compute

Trains two widths on close-ups (close_ups.py) at a constant rate and measures
the averaged weights at budgets of 1 to 32 units. After all budgets but the last
a law L = E + A C^-a is fitted to each width, and the loss at the last budget is
predicted with its 95 % interval; prediction.json is written before the training
goes on. Writes compute.png, results.json and prediction.json.
"""

import argparse
import json
import pathlib

import jax
import numpy as np
import tqdm
from matplotlib import pyplot
from scipy import optimize, stats

from spacetime.config import parse
from spacetime.media import files
from spacetime.training import init_state, setup, step
from tests.benchmarks import close_ups

WIDTHS = (96, 192)
BUDGETS = (1, 2, 4, 8, 16, 32)  # in units
UNIT = 4.5e11  # FLOPs, 18 steps of the wider model
PICTURES = (1, 4, 32)
AVERAGE = 0.98
pyplot.switch_backend('agg')


def main() -> None:
  """Trains, predicts, measures, draws."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', default='runs/compute')
  parser.add_argument('--unit', type=float, default=UNIT, help='FLOPs')
  flags = parser.parse_args()
  out = pathlib.Path(flags.out)
  out.mkdir(parents=True, exist_ok=True)
  files.check_writable(out)
  jax.config.update('jax_compilation_cache_dir', str(out / 'programs'))
  runs = {width: Run(width, out) for width in WIDTHS}
  results, clips = {width: [] for width in WIDTHS}, {}
  for budget in BUDGETS:
    if budget == BUDGETS[-1]:
      predictions = {
        width: predict(points, flags.unit * budget)
        for width, points in results.items()
      }
      write(out / 'prediction.json', predictions)
    for width, run in runs.items():
      run.train(flags.unit * budget)
      scores, shown = run.measure(f'{width}-{budget}')
      results[width].append({'budget': budget, 'flops': run.flops, **scores})
      if width == WIDTHS[-1]:
        clips[budget] = shown
    write(out / 'results.json', results)
  draw(out / 'compute.png', results, predictions, clips)
  for width, predicted in predictions.items():
    loss = results[width][-1]['held_out/loss']
    inside = predicted['low'] <= loss <= predicted['high']
    print(
      f'width {width}: {loss:.4f} at the last budget, predicted '
      f'{predicted["loss"]:.4f} ({predicted["low"]:.4f} to '
      f'{predicted["high"]:.4f}): {"inside" if inside else "OUTSIDE"}'
    )


class Run:
  """A training that goes on from budget to budget.

  Attributes:
    flops: spent so far.
  """

  def __init__(self, width: int, out: pathlib.Path):
    config = close_ups.get_config(
      {
        'model.width': width,
        'model.mlp': 4 * width,
        'optimizer.decay': 0.0,
      }
    )
    run = setup.check(parse.experiment(config), str(out / 'unused'))
    tokenizer = close_ups.get_tokenizer(run, out)
    loss = close_ups.base_loss(run)
    step_fn = step.make_step(
      loss.loss, run.optimizer, ema=AVERAGE, draw=loss.draw
    )
    self._run, self._step = run, jax.jit(step_fn, donate_argnums=0)
    self._draw = close_ups.Draw(run, tokenizer, seed=0)
    self._cost = close_ups.training_flops(run)['step']
    self._state = init_state.init_state(run, None, jax.random.key(0))
    self._scores = close_ups.scorer(run, tokenizer, out)
    self._width = width

  @property
  def flops(self) -> float:
    """FLOPs of all steps so far."""
    return int(self._state.step) * self._cost

  def train(self, budget: float) -> None:
    """Goes on until so many FLOPs are spent in all."""
    steps = range(int(self._state.step), round(budget / self._cost))
    bar = tqdm.tqdm(steps, desc=f'width {self._width}', unit='step')
    for number in bar:
      self._state, metrics = self._step(
        self._state, self._run.frozen, self._draw(number), jax.random.key(1)
      )
      if number % 10 == 0:
        bar.set_postfix(loss=f'{float(metrics["loss"]):.4f}')

  def measure(self, name: str) -> tuple[dict, list]:
    """Scores of the averaged weights, and sampled close-ups."""
    return self._scores(self._state.ema, name)


def law(log_flops, floor, log_scale, exponent):
  """E + A C^-a, of log C; A is e^log_scale."""
  return floor + np.exp(log_scale - exponent * log_flops)


def predict(points: list[dict], flops: float) -> dict[str, float]:
  """The loss at a number of FLOPs, by a law fitted to points, and its 95 %
  interval: that of the fit and of a new point."""
  x = np.log([point['flops'] / flops for point in points])
  y = np.array([point['held_out/loss'] for point in points])
  start = (0.8 * y.min(), np.log(y.min() / 4), 0.5)
  bounds = ([0, -10, 0.05], [y.min(), 3, 3])
  values, covariance = optimize.curve_fit(law, x, y, start, bounds=bounds)
  loss = float(law(0.0, *values))
  # Derivatives of the law at the last budget, where log C is 0.
  scale = np.exp(values[1])
  slope = np.array([1.0, scale, 0.0])
  residual = y - law(x, *values)
  variance = residual @ residual / max(len(x) - 3, 1)
  deviation = np.sqrt(slope @ covariance @ slope + variance)
  margin = float(stats.t.ppf(0.975, max(len(x) - 3, 1)) * deviation)
  return {
    'flops': flops,
    'loss': loss,
    'low': loss - margin,
    'high': loss + margin,
    'floor': float(values[0]),
    'scale': float(scale),
    'exponent': float(values[2]),
  }


def draw(path, results: dict, predictions: dict, clips: dict) -> None:
  """Draws pictures at three budgets beside the curves."""
  figure, (left, right) = pyplot.subplots(
    1, 2, figsize=(13, 3.6), width_ratios=(1.7, 1)
  )
  rows = [
    np.concatenate([clip[0] for clip in clips[budget][: close_ups.SHOWN]], 1)
    for budget in PICTURES
  ]
  side = rows[0].shape[0]
  left.imshow(np.concatenate(rows), interpolation='nearest')
  left.set_yticks(
    [side * (i + 0.5) for i in range(len(rows))],
    [f'{budget}x' for budget in PICTURES],
  )
  left.set_xticks([])
  left.set_title('the same prompts and seeds')
  for number, (width, points) in enumerate(results.items()):
    colour = f'C{number}'
    flops = [point['flops'] for point in points]
    loss = [point['held_out/loss'] for point in points]
    right.plot(flops, loss, 'o', color=colour, label=f'width {width}')
    predicted = predictions[width]
    x = np.geomspace(flops[0], flops[-1], 50)
    y = (
      predicted['floor']
      + predicted['scale'] * (x / predicted['flops']) ** -predicted['exponent']
    )
    right.plot(x, y, color=colour, lw=1)
    margin = predicted['high'] - predicted['loss']
    right.errorbar(
      predicted['flops'],
      predicted['loss'],
      margin,
      color=colour,
      capsize=4,
      lw=1,
    )
  right.set_xscale('log')
  right.set_xlabel('training FLOPs')
  right.set_title('held-out loss; the bars were predicted')
  right.legend()
  right.grid(alpha=0.3)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


def write(path: pathlib.Path, values) -> None:
  """Writes JSON."""
  with files.atomic_write(path) as temporary:
    temporary.write_text(json.dumps(values, indent=2) + '\n', 'utf-8')


if __name__ == '__main__':
  main()
