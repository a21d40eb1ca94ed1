"""Settings of the service: addresses, models, ranges."""

import pathlib
import re

import pytest

from spacetime import SettingError
from spacetime.cli import mesh
from spacetime.serving.settings import ServeSettings


@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', '::1', '127.0.0.9'])
def test_this_machine_needs_no_keys(host):
  assert ServeSettings(host=host).is_local


@pytest.mark.parametrize(
  'values, message',
  [
    ({'host': '0.0.0.0'}, 'expected 127.0.0.1, or `api_keys` too'),
    ({'host': '::'}, 'api_keys'),
    ({'host': 'example.com'}, 'api_keys'),
    ({'port': 70000}, 'port=70000: expected 0 to 65535'),
    ({'keep_hours': 0}, 'keep_hours=0: expected more than 0'),
    ({'max_pixels': -1}, 'max_pixels'),
    ({'lease_seconds': float('nan')}, 'lease_seconds'),
    ({'min_free_mb': -1}, 'min_free_mb'),
    ({'state': ''}, 'state'),
    ({'database': 'mysql://x'}, 'expected postgresql://'),
    ({'database': 'postgresql://x'}, '`files` and `sign` too'),
    ({'num_processes': 2}, 'num_processes=2: expected 2 or more with'),
    ({'coordinator': 'a:1', 'num_processes': 2, 'process_id': 2}, 'process_id'),
    ({'process_id': 1}, 'process_id=1: expected 0 to one less'),
    ({'checkpoint': 'a=x,a=y'}, 'expected a once'),
    ({'checkpoint': 'a,,b'}, 'expected NAME=PATH'),
  ],
)
def test_refusals(values, message):
  with pytest.raises(SettingError, match=message):
    ServeSettings(**values)


def test_models():
  models = ServeSettings(checkpoint='digits,wan=weights/wan,runs/mine').models
  assert models == {
    'digits': 'digits',
    'wan': 'weights/wan',
    'mine': 'runs/mine',
  }


@pytest.mark.parametrize('name', ['serve', 'serve_hosts'])
def test_flags_of_the_deployments_exist(name):
  root = pathlib.Path(__file__).parents[2]
  text = (root / 'launch' / 'gke' / f'{name}.yaml').read_text()
  flags = dict(re.findall(r'^ +- --(\w+)=(\S+)$', text, re.MULTILINE))
  for flag in ('port', 'max_running'):
    flags[flag] = int(flags[flag])
  flags['database'] = 'postgresql://host/name'
  variables = dict(re.findall(r'"--(\w+)=([^"]+)"', text))
  assert set(variables) == (
    {'coordinator', 'num_processes', 'process_id'}
    if name == 'serve_hosts'
    else set()
  )
  for axis in re.findall(r'--mesh\.(\w+)=', text):
    assert axis in mesh.HELP
  settings = ServeSettings(**flags)
  assert not settings.is_local and settings.bucket == 'gs://BUCKET/service'
