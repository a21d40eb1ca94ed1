"""Training stages over a folder of the user's own clips, from end to end."""

import jax
import numpy as np
import pytest

from experiments import digits_pixels
from spacetime.media import video_writer
from spacetime.training import metrics, run
from tests.helpers import training

STAGES = [
  dict(steps=2, shift=1.5, cond=0.0, mix=[dict(height=16, width=32)]),
  dict(
    steps=2,
    mix=[dict(height=32, width=32), dict(frames=9, height=16, width=32)],
  ),
]
BUCKETS = dict(kind='buckets', look_ahead=60, tokens=32)
ROWS = dict(kind='rows', length=64, clips=6, frames=12, look_ahead=12)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Six clips of nine frames, and one that cannot be read."""
  folder = tmp_path_factory.mktemp('clips')
  rng = np.random.default_rng(0)
  for i in range(6):
    frames = rng.integers(0, 256, (9, 48, 64, 3)).astype(np.uint8)
    video_writer.write_video(folder / f'clip{i}.mp4', frames, fps=8)
    (folder / f'clip{i}.txt').write_text(f'a red {i} moves left')
  (folder / 'clip2x.mkv').write_bytes(b'broken')
  (folder / 'clip2x.txt').write_text('no clip')
  return folder


def config(folder, **values):
  config_dict = digits_pixels.get_config('tiny')
  with config_dict.unlocked():
    config_dict.data.stages = STAGES
    config_dict.data.packing = values.pop('packing')
  config_dict.update_from_flattened_dict(
    {
      'data.name': 'folder',
      'data.dir': str(folder),
      'data.fps': 8,
      'data.batch_size': 8,
      'train.sheet_every': 0,
      'train.evaluate_every': 2,
      'train.pca_init_clips': 4,
      'train.checkpoint_every': 1,
      'train.keep': 4,
      'optimizer.name': 'adamw',
    }
    | values
  )
  return config_dict


@pytest.mark.parametrize('packing', [BUCKETS, ROWS], ids=['buckets', 'rows'])
def test_a_run_in_stages_resumes_bit_for_bit(
  folder, tmp_path, packing, capsys, monkeypatch
):
  training.limit_devices(monkeypatch, 2)
  config_dict = config(folder, packing=packing)
  full = run.train(
    config_dict.copy_and_resolve_references(), str(tmp_path / 'a')
  )
  err = capsys.readouterr().err
  assert '1 of 6 clips could not be read and were skipped' in err
  workdir = training.killed_after(tmp_path / 'a', 3, tmp_path / 'b')
  again = run.train(config_dict.copy_and_resolve_references(), str(workdir))
  jax.tree.map(np.testing.assert_array_equal, full.params, again.params)
  losses = [
    [x['loss'] for x in metrics.read_metrics(tmp_path / name) if 'loss' in x]
    for name in 'ab'
  ]
  assert len(losses[0]) == 4 and np.isfinite(losses[0]).all()
  assert losses[0] == losses[1]


def test_every_clip_must_hold_the_longest_stage(folder, tmp_path):
  stages = [dict(steps=1, mix=[dict(frames=13, height=16, width=16)])]
  config_dict = config(folder, packing=BUCKETS)
  with config_dict.unlocked():
    config_dict.data.stages = stages
  with pytest.raises(
    ValueError, match='clip0.mp4 is too short: expected 13 fr'
  ):
    run.train(config_dict, str(tmp_path / 'run'))
  assert not any(tmp_path.rglob('*.json'))
