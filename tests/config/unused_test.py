"""Config keys and flags without effect are told."""

import warnings

import jax.numpy as jnp
import pytest

from experiments import digits_pixels
from spacetime import SettingWarning
from spacetime.checkpoint import convert, export
from spacetime.cli import flag_names
from spacetime.config import parse, unused
from spacetime.evaluation import report
from spacetime.evaluation.settings import EvaluationSettings
from tests.helpers import published_folder

STAGES = {
  'data.render': 'live',
  'data.packing': dict(kind='buckets', look_ahead=9),
  'data.stages': [dict(steps=1, tokens=9, mix=[dict(height=16, width=16)])],
}


def messages(call) -> list[str]:
  with warnings.catch_warnings(record=True) as record:
    warnings.simplefilter('always')
    call()
  return [
    str(entry.message)
    for entry in record
    if isinstance(entry.message, SettingWarning)
  ]


@pytest.mark.parametrize(
  ('changes', 'name', 'text'),
  [
    ({'lora.rank': 0}, 'lora.alpha', 'no effect, since `lora.rank` is 0'),
    ({'lora.rank': 4}, 'lora.alpha', None),
    ({'lora.rank': 0}, 'lora.rank', None),
    ({'optimizer.name': 'adamw'}, 'optimizer.adam_rate', "is 'adamw'"),
    ({'optimizer.name': 'muon'}, 'optimizer.adam_rate', None),
    ({'train.pca_init_clips': 0}, 'train.pca_init_rank', 'clips` is 0'),
    (
      {'conditioning.context_noise_prob': 0.0},
      'conditioning.context_noise',
      'context_noise_prob` is 0',
    ),
    ({'data.name': 'folder'}, 'data.clips', "`data.name` is 'folder'"),
    ({'data.name': 'folder'}, 'data.world.legs', "`data.name` is 'folder'"),
    ({}, 'flow_map.delta', '`model.flow_map` is 0'),
    ({'model.flow_map': 0.25}, 'flow_map.delta', None),
    ({'model.flow_map': 0.25}, 'flow.std', '`model.flow_map` is not 0'),
    ({'data.render': 'live'}, 'data.dir', "`data.render` is 'live'"),
    ({}, 'data.max_unreadable', "`data.name` is 'digits'"),
    ({}, 'data.changes', "`data.name` is 'digits'"),
    ({'data.name': 'cache'}, 'data.max_unreadable', "`data.name` is 'cache'"),
    ({'data.name': 'cache'}, 'data.changes', None),
    ({'data.name': 'folder'}, 'data.max_unreadable', None),
    ({}, 'data.caption_dropout', None),
    ({'stage': 'autoencoder'}, 'data.caption_dropout', 'without captions'),
    (STAGES, 'data.packing.tokens', 'every stage has `tokens`'),
    ({}, 'data.dir', None),
    ({}, 'train.steps', None),
  ],
)
def test_keys_without_effect(changes, name, text):
  config = digits_pixels.get_config('tiny')
  with config.unlocked():
    for key, value in changes.items():
      section, _, key = key.partition('.')
      config.update({section: {key: value} if key else value})
  experiment = parse.experiment(config)
  result = messages(lambda: unused.warn(experiment, [name]))
  assert len(result) == (text is not None)
  assert text is None or text in result[0]


def test_keys_that_a_command_sets():
  argv = ['x', '--config=a:b', '--config.train.steps=3', '-config.seed', '1']
  argv += ['--config.train.steps=4', '--workdir=config.x']
  assert flag_names.config_keys(argv) == ['train.steps', 'seed']


def test_convert(tmp_path, monkeypatch):
  for name in ('to_weights', 'to_published'):
    monkeypatch.setattr(convert, name, lambda *args, **kwargs: None)
  source = published_folder.write(tmp_path / 'wan')
  size = 2 * 10**9

  def call(path, **options):
    return messages(lambda: convert.convert(path, tmp_path / 'new', **options))

  assert 'shard_gb=2.0: no effect' in call(source, shard_bytes=size)[0]
  assert not call(source, dtype=jnp.bfloat16)
  assert not call('digits', shard_bytes=size)
  (text,) = call('digits', variant='bf16')
  assert "variant='bf16': no effect, since `source` is no folder" in text
  assert 'transformer=' in call('digits', transformer='transformer')[0]


def test_export(tmp_path, monkeypatch):
  monkeypatch.setattr(export, '_write_weights', lambda *args: '')
  monkeypatch.setattr(export, '_autoencoder_params', lambda *args: {})
  for path in ('digits', 'digits_autoencoder'):

    def export_to(path=path, **options):
      return export.export(path, tmp_path / 'new', **options)

    (text,) = messages(lambda call=export_to: call(base='elsewhere'))
    assert "base='elsewhere': no effect" in text
    with pytest.raises(ValueError, match="lora='diffusers': expected none"):
      export_to(lora='diffusers')


def test_evaluate(tmp_path, monkeypatch):
  """Settings of sampling, of an autoencoder."""
  monkeypatch.setattr(
    report.load, 'load_own', lambda *a, **k: {'autoencoder': 0}
  )
  monkeypatch.setattr(report, 'real_clips', lambda *args, **k: ([], []))
  monkeypatch.setattr(report.contact_sheet, 'write', lambda *args: None)
  settings = EvaluationSettings(
    'digits_autoencoder', steps=3, size='32x32', out=str(tmp_path)
  )
  with pytest.warns(SettingWarning) as record, pytest.warns(RuntimeWarning):
    with pytest.raises(ValueError):  # no clips
      report.write(settings)
  names = [r.message.name for r in record if hasattr(r.message, 'name')]
  assert names == ['size', 'steps']
  (tmp_path / 'metrics.json').write_text('{}')
  with pytest.raises(ValueError, match='another evaluation.*`overwrite`'):
    report.write(settings)
