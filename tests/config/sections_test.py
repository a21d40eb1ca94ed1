"""Refusals of config sections."""

import dataclasses
import math

import pytest

from experiments import digits_pixels
from spacetime import SettingError
from spacetime.config import parse, sections


@pytest.mark.parametrize(
  'values, text',
  [
    ({'name': 'sgd'}, "optimizer.name='sgd': expected one of"),
    ({'learning_rate': 0}, 'optimizer.learning_rate=0: expected above 0'),
    ({'clip': -1.0}, 'optimizer.clip=-1.0: expected above 0'),
    ({'decay': 1.5}, 'optimizer.decay=1.5: expected 0 to 1'),
    ({'adam_rate': -1.0}, 'optimizer.adam_rate=-1.0: expected above 0'),
    ({'newton_schulz': 0}, 'optimizer.newton_schulz=0: expected above 0'),
    ({'warmup': -1}, 'optimizer.warmup=-1: expected 0 or more'),
    ({'weight_decay': -0.1}, 'optimizer.weight_decay=-0.1: expected 0 or more'),
    ({'b1': 1.0}, 'optimizer.b1=1.0: expected 0 or more, below 1'),
    ({'b2': -0.5}, 'optimizer.b2=-0.5: expected 0 or more, below 1'),
    ({'moments': 'int8'}, "optimizer.moments='int8': expected one of"),
    (
      {'moments': 'bfloat16', 'b2': 0.99},
      'optimizer.b2=0.99: expected at most 0.98 with',
    ),
    ({'freeze': 'a'}, r"freeze='a': expected .* such as \('a',\)"),
  ],
)
def test_optimizer_refuses(values, text):
  with pytest.raises(ValueError, match=text):
    sections.OptimizerConfig(**values)


def test_a_text_without_tokens_is_refused():
  with pytest.raises(ValueError, match='text.length=0: expected 1 or more'):
    sections.TextSection(length=0, encoder=None)


@pytest.mark.parametrize('fps', [0, -8, math.nan, math.inf])
def test_a_rate_of_clips_is_above_zero(fps):
  data = parse.experiment(digits_pixels.get_config('tiny')).data
  with pytest.raises(ValueError, match=f'data.fps={fps}: expected above 0'):
    dataclasses.replace(data, fps=fps)


def test_frame_conditioning_refuses():
  zeros = dict.fromkeys(sections.CONDITIONING_KINDS, 0.0)
  with pytest.raises(ValueError, match='weights that are not negative'):
    sections.FrameConditioningConfig(**zeros)
  for name in ('context_noise_prob', 'context_noise', 'independent_noise_prob'):
    with pytest.raises(ValueError, match=f'{name}=1.5: expected 0 to 1'):
      sections.FrameConditioningConfig(**{name: 1.5})


TRAIN = dict(
  **dict(steps=4, ema=0.9, accumulate=1, log_every=1, evaluate_every=0),
  **dict(sheet_every=0, checkpoint_every=0, keep=1, held_out=1),
)


@pytest.mark.parametrize(
  'values, text',
  [
    ({'steps': 0}, 'train.steps=0: expected 1 or more'),
    ({'pca_init_rank': -1}, 'train.pca_init_rank=-1: expected 0 or more'),
    ({'checkpoint_every': -9}, 'checkpoint_every=-9: expected 0 or more'),
    ({'sheet_every': -1}, 'train.sheet_every=-1: expected 0 or more'),
    ({'ema': 1.0}, 'train.ema=1.0: expected 0 <= ema < 1'),
    ({'spike': -1.0}, 'train.spike=-1.0: expected a loss above 0'),
  ],
)
def test_train_refuses(values, text):
  with pytest.raises(ValueError, match=text):
    sections.TrainConfig(**(TRAIN | values))


def test_reconstruction_refuses():
  for values, text in (
    ({'kl': -1e-6}, 'reconstruction.kl=-1e-06: expected 0 or more'),
    ({'scales': -1}, 'reconstruction.scales=-1: expected 0 or more'),
    ({'squared': 0.0, 'absolute': 0.0}, 'squared=0: expected above 0 without'),
  ):
    with pytest.raises(ValueError, match=text):
      sections.ReconstructionConfig(**values)


def test_the_text_section_refuses_unknown_kinds():
  with pytest.raises(ValueError, match="text.kind='learnt': expected one of"):
    sections.TextSection(length=8, encoder=None, kind='learnt')


@pytest.mark.parametrize(
  'name, value',
  [
    ('data.height', 10**12),
    ('optimizer.warmup', 10**12),
    ('text.vocab_size', 10**12),
    ('model.patch', (1, 2**31, 1)),
    ('train.steps', -(2**40)),
  ],
)
def test_numbers_beyond_any_shape_are_refused(name, value):
  config = digits_pixels.get_config('tiny')
  config.update_from_flattened_dict({name: value})
  with pytest.raises(SettingError, match='whole numbers below 2,147,483,648'):
    parse.experiment(config)
