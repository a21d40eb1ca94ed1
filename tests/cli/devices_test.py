"""The TPU backend where there is no TPU."""

import pytest

from spacetime.cli import devices


@pytest.mark.parametrize(
  ('files', 'installed', 'idle'),
  [
    ((), True, True),
    ((), False, False),
    (('/dev/accel*',), True, False),
    (('/dev/vfio/[0-9]*',), True, False),
    (('/dev/nvidia*',), True, False),
  ],
)
def test_the_compiler_of_tpus_is_idle(files, installed, idle, monkeypatch):
  monkeypatch.setattr(devices.sys, 'platform', 'linux')
  monkeypatch.setattr(
    devices.glob, 'glob', lambda pattern: [pattern] * (pattern in files)
  )
  monkeypatch.setattr(
    devices.importlib.util,
    'find_spec',
    lambda name: name if installed else None,
  )
  assert devices.has_idle_compiler() == idle
