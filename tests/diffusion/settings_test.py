"""Sampling settings: help for every field, refusals, and what they build."""

import dataclasses

import pytest

from spacetime import SettingError
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
  }
  settings = dataclasses.replace(SETTINGS, guidance_kind='apg', **values)
  guidance = settings.make_guidance()
  assert {name: getattr(guidance, name) for name in values} == values
  assert (guidance.scale, guidance.kind) == (2.0, 'apg')
  assert guidance.interval == (0.1, 0.9)


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


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'steps': 0}, '^steps=0: expected 1 or more'),
    ({'shift': 0.0}, '^shift=0.0: expected more than 0'),
    ({'solver': 'rk4'}, "^solver='rk4': expected one of"),
    ({'schedule': 'odd'}, "^schedule='odd': expected one of"),
    ({'guidance': -1.0}, '^guidance=-1.0: expected 0 or more'),
    ({'guidance_kind': 'pag'}, "^guidance_kind='pag': expected one of"),
    ({'first_block_cache': 1.0}, '^first_block_cache=1.0: expected 0, which'),
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
