"""Keys of an experiment with their meanings."""

import pytest

from experiments import digits_autoencoder, digits_mixed, wan_t2v_1_3b
from spacetime.config import describe, parse


@pytest.mark.parametrize(
  'module', [digits_autoencoder, digits_mixed, wan_t2v_1_3b]
)
def test_every_key_has_its_value_and_a_meaning(module):
  config = module.get_config()
  described = {
    key: (value, meaning)
    for key, value, meaning in describe.keys(parse.experiment(config))
  }
  assert all(meaning for _, meaning in described.values())
  for key, value in flat(config.to_dict()):
    assert described[key][0] == value, key


def flat(values, prefix=''):
  for key, value in values.items():
    if isinstance(value, dict):
      yield from flat(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def test_description_wraps_meanings():
  text = describe.describe(parse.experiment(digits_mixed.get_config()))
  assert 'train.steps = 5000\n    steps of the run.\n' in text
  assert max(len(line) for line in text.splitlines() if line[:1] == ' ') <= 80
