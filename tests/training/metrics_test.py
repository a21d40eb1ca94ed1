"""Metrics: what is written is read; a resumed run repeats no step."""

import json

import numpy as np
import pytest

from spacetime.training import metrics, progress
from spacetime.training.metrics import MetricsWriter


def test_writes_and_reads(tmp_path):
  with MetricsWriter(tmp_path / 'run') as writer:
    writer.write(1, {'loss': np.float32(0.5), 'rate/clips': 3})
    writer.write(np.int32(2), {'loss': np.ones((1,)), 'bad': float('nan')})
    writer.image(2, 'sheet', np.zeros((5, 7, 3), np.uint8))
    writer.text('config', 'width: 24')
    writer.flush()
    lines = metrics.read_metrics(tmp_path / 'run')
  assert lines == [
    {'step': 1, 'loss': 0.5, 'rate/clips': 3.0},
    {'step': 2, 'loss': 1.0, 'bad': None},
  ]
  events = list((tmp_path / 'run' / 'tensorboard').iterdir())
  assert len(events) == 1
  data = events[0].read_bytes()
  for name in (b'loss', b'rate/clips', b'sheet', b'config'):
    assert name in data
  assert b'bad' not in data


def test_a_resumed_run_drops_what_its_checkpoint_does_not_hold(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    for step in range(1, 8):
      writer.write(step, {'loss': step})
  path = tmp_path / metrics.FILE
  path.write_text(path.read_text() + '{"step": 8, "lo')  # Killed here.
  assert len(metrics.read_metrics(tmp_path)) == 7
  with MetricsWriter(tmp_path, step=4) as writer:
    writer.write(5, {'loss': 50})
  steps = [line['step'] for line in metrics.read_metrics(tmp_path)]
  assert steps == [1, 2, 3, 4, 5]
  assert json.loads(path.read_text().splitlines()[-1])['loss'] == 50
  with MetricsWriter(tmp_path):  # From the start: all go.
    pass
  assert metrics.read_metrics(tmp_path) == []


def test_bar_counts_from_the_start(capsys):
  with progress.bar(start=3, steps=9) as bar:
    bar.update(1)
    bar.set_postfix(loss=0.5)
    assert (bar.n, bar.total) == (4, 9)
  assert 'train' in capsys.readouterr().err
  with progress.bar(start=0, steps=9, quiet=True) as bar:
    bar.update(1)
  assert capsys.readouterr().err == ''


def test_bad_input(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    with pytest.raises(ValueError, match=r'metric loss has shape \(2,\); expe'):
      writer.write(1, {'loss': np.zeros(2)})
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='cannot be written .*change `workdir`'):
    MetricsWriter(tmp_path / 'file' / 'run')
  with pytest.raises(ValueError, match='metrics.jsonl does not exist; change'):
    metrics.read_metrics(tmp_path / 'absent')
