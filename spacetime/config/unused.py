"""Config keys that a command sets although they have no effect."""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping

from spacetime import SettingWarning
from spacetime.config.experiment import Experiment


def warn(experiment: Experiment, names: Iterable[str]) -> None:
  """Warns of each key without effect.

  Args:
    experiment: the parsed config.
    names: dotted keys that the command sets.
  """
  rules = [*_rules(experiment)]
  for name in names:
    for pattern, reason in rules:
      if re.fullmatch(pattern, name):
        warnings.warn(
          SettingWarning(
            name, _value(experiment, name), f'no effect, since {reason}'
          ),
          stacklevel=2,
        )
        break


def _value(experiment: Experiment, name: str):
  value = experiment.values
  for key in name.split('.'):
    value = value.get(key) if isinstance(value, Mapping) else None
  return value


def _rules(experiment: Experiment) -> Iterator[tuple[str, str]]:
  """(pattern of keys, why they have no effect)."""
  if experiment.stage == 'diffusion' and not experiment.lora.rank:
    yield r'lora\.(?!rank).*', '`lora.rank` is 0'
  if experiment.model is not None:
    if experiment.model.flow_map:
      yield r'flow\.(mean|std)', '`model.flow_map` is not 0'
    else:
      yield r'flow_map\..*', '`model.flow_map` is 0'
  optimizer, train, data = (
    experiment.optimizer,
    experiment.train,
    experiment.data,
  )
  if optimizer is not None and optimizer.name != 'muon':
    yield (
      r'optimizer\.(adam_rate|newton_schulz)',
      f'`optimizer.name` is {optimizer.name!r}',
    )
  if train is not None and not train.pca_init_clips:
    yield r'train\.pca_init_rank', '`train.pca_init_clips` is 0'
  conditioning = experiment.conditioning
  if conditioning is not None and not conditioning.context_noise_prob:
    yield (
      r'conditioning\.context_noise',
      '`conditioning.context_noise_prob` is 0',
    )
  if data is not None and data.name != 'digits':
    yield (
      r'data\.(clips|held_out_clips|render|world\..*)',
      f'`data.name` is {data.name!r}',
    )
  elif data is not None and data.render == 'live':
    yield r'data\.dir', "`data.render` is 'live'"
  if data is not None and not data.source.HAS_FILES:
    yield r'data\.max_unreadable', f'`data.name` is {data.name!r}'
  if data is not None and data.name == 'digits':
    yield r'data\.changes', "`data.name` is 'digits'"
  if experiment.stage == 'autoencoder':
    yield r'data\.caption_dropout', 'an autoencoder learns without captions'
  if data is not None and data.stages and all(s.tokens for s in data.stages):
    yield r'data\.packing\.tokens', 'every stage has `tokens` of its own'
