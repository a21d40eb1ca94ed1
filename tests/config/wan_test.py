"""The experiments on published weights have the published sizes."""

import math

import jax
import pytest

from experiments import wan_t2v_1_3b, wan_t2v_14b, wan_ti2v_5b
from spacetime.checkpoint.interop import networks
from spacetime.config import describe, parse
from spacetime.config import networks as networks_lib
from spacetime.models import text_encoder
from spacetime.models.autoencoder import wan
from spacetime.training import optimizer as optimizer_lib
from spacetime.training import tasks

TEXT = 5_680_910_336
VAE = {(4, 8, 8): 126_892_531, (4, 16, 16): 704_688_668}


def count(tree) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize(
  'module, size, parameters, tokens, stride',
  [
    (wan_t2v_1_3b, 'image', 1_418_996_800, 1_560, (4, 8, 8)),
    (wan_t2v_1_3b, '480p', 1_418_996_800, 32_760, (4, 8, 8)),
    (wan_t2v_1_3b, 'flow_map', 1_421_752_384, 32_760, (4, 8, 8)),
    (wan_t2v_1_3b, 'vace', 2_153_972_032, 32_760, (4, 8, 8)),
    (wan_t2v_14b, '480p', 14_288_491_584, 32_760, (4, 8, 8)),
    (wan_t2v_14b, '720p', 14_288_491_584, 75_600, (4, 8, 8)),
    (wan_ti2v_5b, '480p', 4_999_787_712, 12_090, (4, 16, 16)),
    (wan_ti2v_5b, '720p', 4_999_787_712, 27_280, (4, 16, 16)),
  ],
)
def test_sizes_are_the_published_ones(module, size, parameters, tokens, stride):
  config = module.get_config(size)
  nets = networks_lib.networks(parse.experiment(config))
  params = jax.eval_shape(nets.init, jax.random.key(0))
  assert count(params['dit']) == parameters
  assert count(params['text']) == TEXT
  assert nets.autoencoder.stride == stride
  codec = jax.eval_shape(nets.autoencoder.init, jax.random.key(0))
  assert count(codec) == VAE[stride]
  assert nets.text_length == 512
  grid = networks_lib.clip_geometry(parse.experiment(config).data, nets)
  assert grid.tokens == tokens
  assert f'{tokens:,} tokens' in module.__doc__
  assert f'{parameters:,} parameters' in module.__doc__
  optimizer_lib.make_optimizer(
    parse.experiment(config).optimizer, steps=config.train.steps
  )
  tasks.diffusion_task(parse.experiment(config), nets)


def test_the_frozen_networks_are_the_presets():
  config = wan_t2v_1_3b.get_config()
  nets = networks_lib.networks(parse.experiment(config))
  assert nets.autoencoder.config == wan.PRESETS['wan2.1']
  assert nets.text.config == text_encoder.TextConfig(
    **{**vars(text_encoder.PRESETS['umt5-xxl']), 'dtype': 'bfloat16'}
  )
  nets = networks_lib.networks(parse.experiment(wan_ti2v_5b.get_config()))
  assert nets.autoencoder.config == wan.PRESETS['wan2.2']
  assert len(networks.of(nets.dit.config).rows) == 825


@pytest.mark.parametrize('module', [wan_t2v_1_3b, wan_t2v_14b, wan_ti2v_5b])
def test_an_unknown_size_is_refused(module):
  with pytest.raises(ValueError, match="size '8k': expected one of"):
    module.get_config('8k')


@pytest.mark.parametrize(
  'name, bounds',
  [
    ('480p', (0.0, 1.0)),
    ('480p,transformer', (0.875, 1.0)),
    ('720p,transformer_2', (0.0, 0.875)),
  ],
)
def test_each_of_two_transformers_has_its_noise_levels(name, bounds):
  experiment = parse.experiment(wan_t2v_14b.get_config(name))
  assert experiment.flow.bounds == bounds
  keys = {key: meaning for key, _, meaning in describe.keys(experiment)}
  assert 'noise level that is trained' in keys['flow.low']
  with pytest.raises(ValueError, match="'transformer_3': expected one of"):
    wan_t2v_14b.get_config('480p,transformer_3')
