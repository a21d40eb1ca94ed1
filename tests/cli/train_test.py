"""spacetime train: refusals and interruptions before the first step."""

import signal

import numpy as np
import pytest

from spacetime.media import video_writer
from spacetime.training import run
from tests.helpers import commands


def write_clips(folder, count):
  folder.mkdir()
  for i in range(count):
    frames = np.full((5, 16, 16, 3), 30 * i, np.uint8)
    video_writer.write_video(folder / f'clip{i}.mp4', frames, fps=8)
    (folder / f'clip{i}.txt').write_text(f'a red {i} moves left')


def test_too_few_clips_are_refused_and_nothing_is_written(tmp_path):
  write_clips(tmp_path / 'clips', 2)
  workdir = tmp_path / 'run'
  result = commands.run(
    'train',
    '--config=digits_pixels:tiny',
    f'--workdir={workdir}',
    '--config.data.name=folder',
    f'--config.data.dir={tmp_path / "clips"}',
    '--config.data.frames=5',
    '--config.data.height=16',
    '--config.data.width=16',
    '--config.data.batch_size=8',
    '--config.train.pca_init_clips=8',
    '--config.train.pca_init_rank=48',
  )
  message = result.refusal()
  assert message.startswith(
    f'--config.data.dir={tmp_path / "clips"}: expected '
  )
  assert 'training clips or more, not 1' in message
  assert 'add clips, or set --config.train.pca_init_clips to 0' in message
  assert not workdir.exists() or not any(workdir.iterdir())


@pytest.mark.parametrize(
  'number, flags, code',
  [
    (signal.SIGINT, [], 130),
    (signal.SIGINT, ['--preemption_exit_code=75'], 130),
    (signal.SIGTERM, [], 130),
    (signal.SIGTERM, ['--preemption_exit_code=75'], 75),
  ],
)
def test_a_signal_before_the_first_step_ends_in_one_line(
  tmp_path, monkeypatch, number, flags, code
):
  def train(*args, **kwargs):
    signal.raise_signal(number)
    raise AssertionError('went on')

  monkeypatch.setattr(run, 'train', train)
  result = commands.run(
    'train', '--config=digits_pixels:tiny', f'--workdir={tmp_path}', *flags
  )
  lines = result.err.strip().splitlines()
  assert result.code == code and len(lines) == 1
  assert lines[0].endswith('interrupted before the first step: nothing to save')
