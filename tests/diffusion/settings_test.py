"""Sampling settings: help for every field, refusals, and what they build."""

import dataclasses
import json

import numpy as np
import pytest

from spacetime import SettingError
from spacetime.diffusion import settings as settings_lib
from spacetime.diffusion.settings import SamplingSettings

SETTINGS = SamplingSettings(
  steps=8, solver='unipc', guidance=2.0, interval=(0.1, 0.9), shift=3.0
)


def test_every_field_has_help_and_a_group():
  for field in dataclasses.fields(SamplingSettings):
    assert len(field.metadata['help']) > 20, field.name
    assert field.metadata['group'] in ('solver', 'guidance'), field.name


def test_with_changes_ignores_none():
  changed = SETTINGS.with_changes(steps=4, solver=None, guidance=1.0)
  assert (changed.steps, changed.solver, changed.guidance) == (4, 'unipc', 1.0)


def test_guidance_has_the_settings_of_the_same_name():
  values = {
    'zero_steps': 2,
    'momentum': 0.25,
    'norm_threshold': 7.0,
    'eta': 0.5,
    'skip_layers': (9, 10),
    'skip_layer_scale': 0.5,
    'skip_layer_interval': (0.1, 0.8),
  }
  settings = dataclasses.replace(SETTINGS, guidance_kind='apg', **values)
  guidance = settings.make_guidance()
  assert {name: getattr(guidance, name) for name in values} == values
  assert (guidance.scale, guidance.kind) == (2.0, 'apg')
  assert guidance.interval == (0.1, 0.9)


@pytest.mark.parametrize(
  'value, layers', [(3, (3,)), ([9.0, 10.0], (9, 10)), ((), ())]
)
def test_skip_layers_are_integers(value, layers):
  settings = dataclasses.replace(SETTINGS, skip_layers=value)
  assert settings.skip_layers == layers
  assert all(type(layer) is int for layer in settings.skip_layers)


@pytest.mark.parametrize(
  'changes, steps',
  [
    ({}, 8),
    ({'guidance_kind': 'cfg_zero'}, 7),
    ({'guidance_kind': 'cfg_zero', 'zero_steps': 3}, 5),
    ({'guidance_kind': 'cfg_zero', 'guidance': 1.0}, 8),
    # An edit begins with more than noise.
    ({'guidance_kind': 'cfg_zero', 'strength': 0.5}, 8),
  ],
)
def test_cfg_zero_drops_the_first_steps_from_noise(changes, steps):
  schedule = dataclasses.replace(SETTINGS, **changes).make_schedule()
  assert schedule.steps == steps


def shifted(values, shift):
  values = np.array(values) / 1000
  return shift * values / (1 + (shift - 1) * values)


# The noise levels and the timesteps that the published code of each computes.
RCM = np.tan([np.arctan(80), 1.5, 1.4, 1.0])
PUBLISHED = {
  'lightx2v': ([1, 0.9375, 5 / 6, 0.625], [1, 0.9375, 5 / 6, 0.625]),
  'fastwan': ([1, *shifted([280, 120], 8)], [1, 0.757, 0.522]),
  'rcm': (RCM / (1 + RCM), RCM / (1 + RCM)),
}


@pytest.mark.parametrize('preset', settings_lib.PRESETS)
def test_presets_have_the_published_levels_and_no_guidance(preset):
  base = dataclasses.replace(
    SETTINGS, schedule='published', boundary=0.875, guidance_2=3.0
  )
  settings = base.with_changes(preset=preset)
  schedule = settings.make_schedule()
  sigmas, timesteps = PUBLISHED[preset]
  np.testing.assert_allclose(schedule.sigmas, [*sigmas, 0], atol=1e-6)
  np.testing.assert_allclose(schedule.timesteps, timesteps, atol=1e-6)
  assert schedule.steps == settings.steps == len(timesteps)
  assert settings.make_guidance().branches == ('cond',)
  assert settings.guidance_2 is None
  assert base.with_changes(preset=preset, solver='dpm').solver == 'dpm'
  with pytest.raises(
    SettingError, match=f'^steps=7: expected (1 to )?{len(sigmas)}'
  ):
    base.with_changes(preset=preset, steps=7)


def test_timesteps_bring_their_steps_and_take_the_shift():
  settings = SETTINGS.with_changes(timesteps=[1000, 500], shift=5.0)
  schedule = settings.make_schedule()
  assert settings.timesteps == (1000, 500) and settings.steps == 2
  np.testing.assert_allclose(schedule.sigmas, [1, 5 / 6, 0], atol=1e-7)
  edited = settings.with_changes(strength=0.9).make_schedule()
  np.testing.assert_allclose(edited.sigmas, [5 / 6, 0], atol=1e-7)
  hash(settings.with_changes(interval=[0.1, 0.5]))


@pytest.mark.parametrize('boundary', [0.875, 0.9])
def test_two_experts_share_the_four_steps_of_lightx2v(boundary):
  schedule = SETTINGS.with_changes(preset='lightx2v').make_schedule()
  assert schedule.steps_from(boundary) == 2


def test_rcm_in_fewer_steps_drops_the_last():
  schedule = SETTINGS.with_changes(preset='rcm', steps=2).make_schedule()
  np.testing.assert_allclose(
    schedule.sigmas, [80 / 81, np.tan(1.5) / (1 + np.tan(1.5)), 0], atol=1e-6
  )


@pytest.mark.parametrize(
  'preset, steps, expected',
  [
    ('lightx2v', 8, '4'),
    ('fastwan', 4, '3'),
    ('rcm', 5, '1 to 4'),
    ('rcm', 0, '1 to 4'),
  ],
)
def test_steps_that_a_preset_has_not(preset, steps, expected):
  with pytest.raises(
    SettingError,
    match=f'^steps={steps}: expected {expected} with `preset`={preset}',
  ):
    SETTINGS.with_changes(preset=preset, steps=steps)
  few = dict(timesteps=(1000, 500), steps=2)
  assert SETTINGS.with_changes(preset=preset, **few).steps == 2


def test_rounded_schedule_has_integer_thousandths():
  schedule = dataclasses.replace(SETTINGS, schedule='rounded').make_schedule()
  even = SETTINGS.make_schedule()
  assert schedule.sigmas == even.sigmas
  np.testing.assert_array_equal(
    np.float32(schedule.timesteps), np.round(even.timesteps, 3).astype('f4')
  )


@pytest.mark.parametrize(
  'value, expected',
  [
    (np.array([1000, 500]), (1000, 500)),
    (np.float32([1000, 500]), (1000.0, 500.0)),
    (range(1000, 0, -500), (1000, 500)),
  ],
)
def test_timesteps_of_python(value, expected):
  settings = SETTINGS.with_changes(timesteps=value)
  assert settings.timesteps == expected and settings.steps == len(expected)
  json.dumps(settings.timesteps)
  assert hash(settings) == hash(SETTINGS.with_changes(timesteps=expected))


def test_unknown_preset():
  with pytest.raises(SettingError, match="^preset='lcm': expected one of"):
    SETTINGS.with_changes(preset='lcm')


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'steps': 0}, '^steps=0: expected 1 or more'),
    ({'shift': 0.0}, '^shift=0.0: expected more than 0'),
    ({'solver': 'rk4'}, "^solver='rk4': expected one of"),
    ({'timesteps': (), 'steps': 0}, r'^timesteps=\(\): expected falling'),
    ({'timesteps': '1000,750'}, "^timesteps='1000,750': expected falling"),
    (
      {'timesteps': (500.0, 750.0), 'steps': 2},
      r'^timesteps=\(500.0, 750.0\): expected falling numbers of at most 1000',
    ),
    ({'timesteps': (750.0, 750.0), 'steps': 2}, '^timesteps=.*: expected fall'),
    ({'timesteps': (1001.0,), 'steps': 1}, '^timesteps=.*: expected falling'),
    (
      {'timesteps': (1.0, 0.9375), 'steps': 2},
      r'^timesteps=\(1.0, 0.9375\): expected thousandths before the shift',
    ),
    ({'timesteps': ((1000, 500),), 'steps': 1}, '^timesteps=.*: expected fall'),
    (
      {'timesteps': (1000.0,), 'steps': 1, 'schedule': 'foo'},
      "^schedule='foo': expected one of",
    ),
    *(
      ({'boundary': 0.9, 'guidance_2': value}, f'^guidance_2={value}: expected')
      for value in (float('nan'), float('inf'), -1.0)
    ),
    ({'eta': float('nan')}, '^eta=nan: expected a finite number'),
    ({'interval': (0.5,)}, r'^interval=\(0.5,\): expected 0 <= low'),
    ({'interval': (0.0, 0.5, 1.0)}, '^interval=.*: expected 0 <= low'),
    ({'timesteps': (9.0, 0.0), 'steps': 2}, '^timesteps=.*: expected falling'),
    ({'timesteps': (float('nan'),), 'steps': 1}, '^timesteps=.*: expected fal'),
    (
      {'timesteps': (1000.0, 750.0)},
      '^steps=8: expected 2, the number of `timesteps`; leave it out',
    ),
    (
      {'timesteps': (1000.0, 750.0), 'steps': 2, 'strength': 0.5},
      '^strength=0.5: expected at least 0.900, the last noise level of `times',
    ),
    ({'schedule': 'odd'}, "^schedule='odd': expected one of"),
    ({'steps': 10**9}, '^steps=1000000000: expected 1 or more, at most 10,000'),
    ({'steps': True}, '^steps=True: expected a whole number'),
    ({'shift': '3'}, "^shift='3': expected a number"),
    ({'guidance': [2]}, r'^guidance=\[2\]: expected a number'),
    ({'boundary': 'a'}, "^boundary='a': expected a number"),
    ({'solver': 3}, '^solver=3: expected a text'),
    ({'timesteps': 2.5}, '^timesteps=2.5: expected falling'),
    ({'interval': 0.5}, '^interval=0.5: expected 0 <= low'),
    ({'interval': (0.5,)}, r'^interval=\(0.5,\): expected 0 <= low < high'),
    ({'eta': float('nan')}, '^eta=nan: expected a finite number'),
    ({'guidance': -1.0}, '^guidance=-1.0: expected 0 or more'),
    ({'guidance_kind': 'pag'}, "^guidance_kind='pag': expected one of"),
    ({'first_block_cache': 1.0}, '^first_block_cache=1.0: expected 0, which'),
    ({'skip_layers': (1.5,)}, r'^skip_layers=\(1.5,\): expected numbers of la'),
    ({'skip_layers': '3'}, "^skip_layers='3': expected numbers of layers"),
    ({'temperature': 1.5}, '^temperature=1.5: expected 0, no noise, to 1'),
    (
      {'temperature': 0.5, 'strength': 0.9},
      '^temperature=0.5: expected 1 with `strength`=0.9',
    ),
    ({'rope_scaling': 'yarn'}, "^rope_scaling='yarn': expected one of"),
    ({'boundary': 1.0}, '^boundary=1.0: expected a noise level between'),
    ({'guidance_2': 2.0}, '^guidance_2=2.0: expected None, since the model'),
    (
      {'boundary': 0.5, 'guidance_2': -1.0},
      '^guidance_2=-1.0: expected 0 or more',
    ),
    (
      {'boundary': 0.5, 'guidance': 1.0, 'guidance_2': 2.0},
      '^guidance_2=2.0: expected 1, since `guidance` is 1',
    ),
  ],
)
def test_refuses(changes, message):
  with pytest.raises(SettingError, match=message):
    dataclasses.replace(SETTINGS, **changes)
