"""Every experiment: small ones run, large ones have the shapes they claim."""

import dataclasses
import functools
import importlib
import json
import math
import pathlib

import jax
import numpy as np
import pytest

from experiments import (
  digits,
  digits_autoencoder,
  digits_mixed,
  digits_pixels,
)
from spacetime.checkpoint.locate import locate
from spacetime.config import mesh, networks, parse, samplers
from spacetime.data import geometry
from spacetime.models.transformer import rope
from spacetime.training import optimizer, tasks

ROOT = pathlib.Path(__file__).parents[2]


def test_every_experiment_has_a_docstring_with_its_command():
  for path in sorted((ROOT / 'experiments').glob('*.py')):
    module = importlib.import_module(f'experiments.{path.stem}')
    if hasattr(module, 'get_config'):
      assert f'--config={path.stem}' in module.__doc__


def rows_of(packing, text_length: int, volume: int) -> dict:
  """A batch of two packed rows of pixels, its shapes alone."""
  N, G, T = packing.length, packing.clips, packing.frames
  shapes = {
    **{'segment_ids': (N,), 'positions': (N, 3), 'frame_ids': (N,)},
    **{'grids': (G, 3), 'frame_table': (T, 2), 'tokens': (G, text_length)},
  }
  batch = {
    name: jax.ShapeDtypeStruct((2, *shape), 'int32')
    for name, shape in shapes.items()
  }
  patches = jax.ShapeDtypeStruct((2, N, volume), 'uint8')
  return batch | {'patches': patches}


@pytest.mark.slow
@pytest.mark.parametrize(
  'module, sizes',
  [
    (digits_pixels, ['tiny']),
    (digits_pixels, ['cpu']),
    (digits_pixels, ['full']),
    (digits_mixed, ['tiny']),
    (digits_mixed, ['cpu']),
    (digits, ['cpu']),
    (digits, ['bundled']),
  ],
)
def test_digits(module, sizes):
  config = module.get_config(*sizes)
  trained = None
  if module is digits:
    trained = parse.experiment(digits_autoencoder.get_config()).autoencoder
  nets = networks.networks(parse.experiment(config), autoencoder=trained)
  grid = networks.clip_geometry(parse.experiment(config).data, nets)
  task = tasks.diffusion_task(parse.experiment(config), nets)
  batch = {
    'frames': jax.ShapeDtypeStruct(
      (2, grid.frames, grid.height, grid.width, 3), 'uint8'
    ),
    'tokens': jax.ShapeDtypeStruct((2, nets.text_length), 'int32'),
  }
  packing = parse.experiment(config).data.packing
  if hasattr(packing, 'length'):  # rows of pixels
    volume = nets.dit.config.patch_volume
    batch = rows_of(packing, nets.text_length, volume)
  params = jax.eval_shape(task.init, jax.random.key(0))
  frozen = {}
  if trained:
    frozen['autoencoder'] = jax.eval_shape(
      nets.autoencoder.init, jax.random.key(0)
    )
  loss, _ = jax.eval_shape(task.loss, params, frozen, batch, jax.random.key(0))
  assert loss.shape == ()
  axes = optimizer.matrix_axes(params)
  blocks = params['dit']['blocks']['mlp_in']['kernel']
  assert blocks.shape[0] == config.model.layers
  assert axes['dit']['blocks']['mlp_in']['kernel'] is not None
  optimizer.make_optimizer(
    parse.experiment(config).optimizer, steps=config.train.steps
  )


@pytest.mark.parametrize('size', ['tiny', 'cpu', 'bundled', 'full', 'gpu'])
def test_stages_of_digits(size):
  experiment = parse.experiment(digits.get_config(size))
  data = experiment.data
  assert experiment.train.steps > sum(stage.steps for stage in data.stages[:-1])
  # Close-ups before clips, unless it goes on from weights that know clips; no
  # conditioning frames before whole clips.
  kinds = data.stages[0].mix
  frames = {shape[0] for kind in kinds for shape in kind.shapes}
  assert frames == {1} or size == 'full'
  assert data.frames <= data.max_frames <= 49
  for stage in data.stages:
    clips = any(
      kind.framing == 'wide' and kind.frames > 1 for kind in stage.mix
    )
    assert clips or not stage.cond
  grid = functools.partial(
    geometry.Geometry, stride=(4, 8, 8), patch=experiment.model.patch
  )
  for stage in data.stages:
    chances = stage.chances(lambda shape: grid(*shape).tokens)
    np.testing.assert_allclose(chances.sum(), 1)
    most = stage.tokens or data.packing.length  # of a batch, or of a row
    shapes = [shape for kind in stage.mix for shape in kind.shapes]
    assert all(grid(*shape).tokens <= most for shape in shapes)


@pytest.mark.parametrize('size', ['tiny', 'cpu', 'quick'])
def test_digits_autoencoder(size):
  experiment = parse.experiment(digits_autoencoder.get_config(size))
  codec = networks.autoencoder(experiment.autoencoder)
  assert codec.stride == (4, 8, 8) and codec.z_dim == 16
  assert experiment.data.shapes == [(9, 32, 32)]
  bundled = parse.experiment(
    json.loads(
      (ROOT / 'spacetime/assets/digits_autoencoder/config.json').read_text()
    )
  )
  if size == 'cpu':
    parsed = dataclasses.replace(
      bundled.autoencoder.network, latents_mean=(), latents_std=()
    )
    assert parsed == experiment.autoencoder.network


def test_unknown_keys_name_the_nearest():
  config = digits_pixels.get_config('tiny')
  with config.unlocked():
    config.train.stpes = 5
  with pytest.raises(
    ValueError,
    match='train.stpes=5: expected one of the keys.*mean train.steps',
  ):
    parse.experiment(config)
  config = digits_pixels.get_config('tiny')
  del config.train.steps
  with pytest.raises(ValueError, match='train.steps=None: expected a value'):
    parse.experiment(config)
  config = digits_pixels.get_config('tiny')
  del config.train
  with pytest.raises(ValueError, match='train=None: expected a section'):
    parse.experiment(config).require('train')


def test_shared_sizes_are_set_once():
  config = digits_pixels.get_config('tiny')
  with config.unlocked():
    config.model.channels = 7
  with pytest.raises(
    ValueError, match='model.channels=7: expected one of the keys'
  ):
    parse.experiment(config)


@pytest.mark.parametrize(
  'module, values, latents',
  [
    (digits_pixels, {'data.frames': 13}, 4),
    (digits_pixels, {'data.frames': 13, 'data.crop': (9, 32, 32)}, 3),
    # The held-out clips of this one are shorter.
    (digits_mixed, {}, 3),
  ],
)
def test_rope_scaling_counts_from_the_longest_training_clip(
  module, values, latents
):
  config = module.get_config('tiny')
  config.update_from_flattened_dict(values)
  nets = networks.networks(parse.experiment(config))

  def scalings(**settings):
    sampling = parse.experiment(config).sampling.with_changes(
      first_block_cache=0.1, **settings
    )
    sampler = samplers.sampler(parse.experiment(config), nets, sampling)
    used = sampler.transform.__self__, sampler.precompute_kv.__self__
    return {n.dit.scaling for n in (*used, sampler.cached_transform.networks)}

  assert scalings() == scalings(rope_scaling='none') == {None}
  expected = rope.Scaling('riflex', latents)
  assert scalings(rope_scaling='riflex') == {expected}


def test_temperature_scales_the_initial_noise():
  config = digits_pixels.get_config('tiny')
  nets = networks.networks(parse.experiment(config))
  for changes, expected in (({}, 1.0), ({'temperature': 0.4}, 0.4)):
    sampling = parse.experiment(config).sampling.with_changes(**changes)
    assert (
      samplers.sampler(
        parse.experiment(config), nets, sampling
      ).settings.temperature
      == expected
    )


def make_mesh(config):
  return mesh.mesh(parse.experiment(config))


def changed(**values):
  config = digits_pixels.get_config('tiny')
  config.update_from_flattened_dict(values)
  return config


@pytest.mark.parametrize(
  'check, values, text',
  [
    (parse.experiment, {'data.name': 'films'}, "data.name='films': expected"),
    (
      parse.experiment,
      {'data.caption_dropout': 1.5},
      'data.caption_dropout=1.5: expected 0 to 1',
    ),
    (parse.experiment, {'train.steps': 0}, 'train.steps=0'),
    (parse.experiment, {'train.ema': 1.0}, 'train.ema=1.0: expected'),
    *(
      (parse.experiment, {name: value}, f'{name}={value}: expected a finite')
      for name in ('optimizer.learning_rate', 'flow.shift', 'conditioning.none')
      for value in (math.nan, math.inf)
    ),
    (
      parse.experiment,
      {'sampling.guidance': -1.0},
      'guidance=-1.0: expected 0 or more',
    ),
    (parse.experiment, {'sampling.solver': 'rk4'}, "solver='rk4'"),
    (make_mesh, {'mesh.data': 3}, 'mesh.data=3: .* is 8, the'),
    (
      make_mesh,
      {'data.batch_size': 12},
      'data.batch_size=12: .*such as 16',
    ),
    (
      parse.experiment,
      {'autoencoder.kind': 'vq'},
      "autoencoder.kind='vq': expected",
    ),
  ],
)
def test_refuses(check, values, text):
  with pytest.raises(ValueError, match=text):
    check(changed(**values))


def test_resolve_finds_folders_and_refuses_the_rest(tmp_path):
  (tmp_path / 'inner').mkdir()
  assert locate('inner', beside=tmp_path).folder == str(tmp_path / 'inner')
  assert locate(str(tmp_path)).folder == str(tmp_path)
  with pytest.raises(ValueError, match="'nowhere': no such folder"):
    locate('nowhere')
