"""Amounts of a training step: clips, tokens and FLOPs, as they are trained."""

import functools
import math

import numpy as np
import pytest

from experiments import digits_mixed, digits_pixels
from spacetime.config import networks, parse
from spacetime.data import batches
from spacetime.models import flops
from spacetime.training import loop, tasks


def parsed(module, **values):
  config = module.get_config('tiny')
  config.unlock()
  for name, value in values.items():
    section, key = name.split('__')
    config[section][key] = value
  experiment = parse.experiment(config)
  return experiment, networks.networks(experiment)


def cost(nets, grid):
  """FLOPs of a training step on one clip."""
  model = nets.dit.config
  return flops.training(
    flops.transformer(
      tokens=math.prod(grid),
      text_tokens=nets.text_length,
      width=model.width,
      layers=model.layers,
      mlp=model.mlp,
      text_width=model.text_width,
      patch_volume=model.patch_volume,
      timesteps=grid[0],
      frequencies=model.frequencies,
    )
  )


def test_clips_count_with_their_own_size():
  experiment, nets = parsed(digits_pixels)
  grid = networks.clip_geometry(experiment.data, nets, (1, 16, 32)).grid
  rates = tasks.batch_rates(experiment, nets)(
    {'frames': np.zeros((3, 1, 16, 32, 3), np.uint8)}
  )
  assert rates == loop.Rates(3, 3 * math.prod(grid), 3 * cost(nets, grid))
  latent = networks.clip_geometry(experiment.data, nets, (1, 16, 32)).latent
  assert rates == tasks.batch_rates(experiment, nets)(
    {'latents': np.zeros((3, *latent, 2))}
  )
  assert tasks.batch_rates(experiment, None)(
    {'frames': np.zeros((5, 1, 16, 32, 3))}
  ) == loop.Rates(5)


def test_packed_rows_count_their_clips_without_padding():
  experiment, nets = parsed(digits_mixed)
  grids = np.zeros((2, 4, 3), np.int32)
  grids[0, 0], grids[0, 1], grids[1, 0] = (1, 2, 3), (2, 2, 3), (3, 3, 4)
  rates = tasks.batch_rates(experiment, nets)({'grids': grids})
  each = [cost(nets, grid) for grid in ((1, 2, 3), (2, 2, 3), (3, 3, 4))]
  assert rates == loop.Rates(3, 6 + 12 + 36, pytest.approx(sum(each)))


MIX = [dict(height=16, width=16), dict(frames=5, height=32, width=32)]
STAGES = {
  'data__stages': [dict(steps=1, tokens=tokens, mix=MIX) for tokens in (8, 70)],
  'data__render': 'live',
  'data__packing': dict(kind='buckets', look_ahead=99),
  'data__batch_size': 1,
}


@pytest.mark.parametrize(
  ('values', 'size', 'clips'),
  [
    ({'data__batch_size': 6}, None, 6),
    # Clips are trained as they are cropped.
    ({'data__batch_size': 6, 'data__crop': (1, 16, 16)}, (1, 16, 16), 6),
    (STAGES, (1, 16, 16), 70),
    # Of two batches of eight tokens, the one of larger clips.
    (STAGES | {'data__stages': STAGES['data__stages'][:1]}, (5, 32, 32), 1),
  ],
)
def test_rates_are_those_of_the_batch_with_the_most_tokens(values, size, clips):
  experiment, nets = parsed(digits_pixels, **values)
  grid = networks.clip_geometry(experiment.data, nets, size)
  rates = tasks.rates(experiment, nets)
  assert (rates.clips, rates.tokens) == (clips, clips * grid.tokens)
  assert rates.flops == pytest.approx(clips * cost(nets, grid.grid))


def test_largest_batch_of_mixed_sizes():
  buckets = dict(kind='buckets', look_ahead=999, tokens=100)
  experiment, nets = parsed(digits_mixed, data__packing=buckets)
  data = experiment.data
  grid = functools.partial(networks.clip_geometry, data, nets)
  size, clips = batches.largest_batch(data, lambda *size: grid(size))
  assert size in data.mixed.shapes
  most = max(grid(each).tokens for each in data.mixed.shapes)
  assert (grid(size).tokens, clips) == (most, data.batch_size)
