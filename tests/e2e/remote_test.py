"""A work directory in a bucket: what a run writes beside its arrays."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from spacetime import checkpoint
from spacetime.checkpoint import lock
from spacetime.training import metrics, sheets
from spacetime.training.goodput import FILE, Goodput
from tests.helpers import bucket as bucket_lib

RUN = 'gs://bucket/run'


@pytest.fixture
def bucket(monkeypatch):
  bucket_lib.in_memory(monkeypatch)


def test_config_and_lock(bucket):
  checkpoint.write_config(RUN, {'seed': 1}, tokenizer=b'model')
  with pytest.raises(ValueError, match='seed: 1 -> 2'):
    checkpoint.check_config(RUN, {'seed': 2})
  with lock.held(RUN), pytest.raises(ValueError, match='another run'):
    with lock.held(RUN):
      pass
  assert not (epath.Path(RUN) / lock.LOCK).exists()


def test_metrics_and_ledger_go_on(bucket):
  with metrics.MetricsWriter(RUN) as writer:
    for step in (1, 2, 3):
      writer.write(step, {'loss': step})
    writer.image(3, 'sheet', np.zeros((4, 6, 3), np.uint8))
  with metrics.MetricsWriter(RUN, step=2) as writer:
    writer.write(3, {'loss': 30})
  lines = metrics.read_metrics(RUN)
  assert [line['loss'] for line in lines] == [1, 2, 30]
  assert list((epath.Path(RUN) / metrics.BOARD).iterdir())
  Goodput(RUN).write(now=True)
  Goodput(RUN).write(now=True)
  assert json.loads((epath.Path(RUN) / FILE).read_text())['starts'] == 2


def test_pictures(bucket):
  path = checkpoint.absolute(RUN) / 'sheets' / 'a.png'
  with sheets.written(path) as file:
    file.write_bytes(b'png')
  assert path.read_bytes() == b'png'


def test_a_run_in_a_bucket(tmp_path):
  """Trained, gone on with and sampled from there: as on a disk, bit for bit."""

  def call(module, *arguments):
    done = subprocess.run(
      [sys.executable, '-m', 'spacetime', module, *arguments],
      env=os.environ | where,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr

  def train(workdir, steps):
    values = {
      'data.dir': tmp_path / 'data',
      'data.batch_size': 8,
      'train.steps': steps,
      'train.checkpoint_every': 2,
      'train.log_every': 1,
      'train.evaluate_every': 0,
      'train.sheet_every': 0,
      'train.pca_init_clips': 0,
    }
    overrides = [f'--config.{key}={value}' for key, value in values.items()]
    config = '--config=experiments/digits_pixels.py:tiny'
    call('train', config, f'--workdir={workdir}', *overrides)

  def losses(text):
    lines = [json.loads(line) for line in text.splitlines()]
    return [line['loss'] for line in lines if 'loss' in line]

  with bucket_lib.served() as (objects, where):
    train(RUN, 2)
    assert 'run/checkpoints/2/commit_success.txt' in objects.held
    train(RUN, 4)
    train(tmp_path / 'run', 4)
    got = losses(objects.held['run/metrics.jsonl'][0].decode())
    want = losses((tmp_path / 'run' / 'metrics.jsonl').read_text())
    assert len(want) == 4
    assert got == want
    for workdir, name in ((RUN, 'a'), (tmp_path / 'run', 'b')):
      out = f'--out={tmp_path / name}/'
      call(
        'sample', f'--checkpoint={workdir}', '--prompt=a 7', '--steps=2', out
      )
  assert f'run/{lock.LOCK}' not in objects.held
  first, second = (sorted((tmp_path / n).glob('*.png')) for n in 'ab')
  assert len(first) == len(second) == 5
  for a, b in zip(first, second, strict=True):
    assert a.read_bytes() == b.read_bytes()
