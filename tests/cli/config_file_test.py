"""Overrides of a config on the command line."""

import pytest

from tests.helpers import commands


def printed(name: str) -> dict[str, str]:
  """The keys that `train --print_config` shows with an override."""
  result = commands.run(
    'train', '--config=digits_pixels:tiny', '--print_config', f'--config.{name}'
  ).ok()
  pairs = [line.partition(' = ') for line in result.out.splitlines()]
  return {key: value for key, equals, value in pairs if equals}


@pytest.mark.parametrize(
  'name, value',
  [
    ('data.fps=29.97', '29.97'),  # the file has a whole number
    ('data.fps=24', '24'),
    ('data.crop=5,16,16', '(5, 16, 16)'),  # the file has None
    ('data.crop=(5, 16, 16)', '(5, 16, 16)'),
    ('data.crop=None', 'None'),
  ],
)
def test_values_of_another_type_than_in_the_file(name, value):
  assert printed(name)[name.partition('=')[0]] == value


@pytest.mark.parametrize(
  'config, name, message',
  [
    ('digits_pixels:tiny', 'data.crop=1,2', 'expected None, or frames, height'),
    ('digits_pixels:tiny', 'data.crop=abc', 'expected None, or frames, height'),
    ('digits_pixels:tiny', 'data.crop=9,64,64', 'of at most (5, 32, 32)'),
    ('digits_pixels:tiny', 'data.fps=-1.5', 'expected above 0'),
    ('digits_pixels:tiny', 'data.fps=abc', 'expected a number'),
    ('digits_pixels:tiny', 'data.packing=rows', 'expected a section'),
    ('digits_pixels:tiny', 'train.steps=1.5', 'expected a whole number'),
    ('wan_t2v_1_3b', 'flow.high=abc', 'expected a number'),
    ('wan_t2v_1_3b', 'flow.low=1,2', 'expected a number'),
  ],
)
def test_refusals_name_the_key(config, name, message):
  refusal = commands.run(
    'train', f'--config={config}', '--print_config', f'--config.{name}'
  ).refusal()
  assert refusal.startswith(f'--config.{name.partition("=")[0]}=')
  assert message in refusal
