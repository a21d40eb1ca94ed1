"""Videos are written as they are finished; nothing of the user's is lost."""

import dataclasses
import errno
import json
import os
import stat

import numpy as np
import pytest

from spacetime.media import fragmented_mp4, video_reader, video_writer
from spacetime.pipeline import generate, outputs, pipeline, plan, request
from spacetime.pipeline.prompt_embeds import PromptEmbeds
from tests.helpers import commands

PROMPT = 'a red 3 moves left'


class Sampler:
  """Stands in for sampling: clip i is of gray level 20 * i.

  Attributes:
    clips: numbers of the clips that were sampled.
    stop: (number, exception): raised instead of that clip.
  """

  def __init__(self):
    self.clips, self.stop = [], (None, None)

  def __call__(self, engine, plan, embeds, *, pending=None):
    count = len(embeds.text)
    for first in range(0, count, plan.batch_size):
      batch = range(first, min(first + plan.batch_size, count))
      if pending is not None and not any(i in pending for i in batch):
        continue
      for i in batch:
        if i == self.stop[0]:
          raise self.stop[1]
        self.clips.append(i)
        yield i, np.full((plan.frames, 32, 32, 3), 20 * i % 256, np.uint8)


@pytest.fixture
def sampler(monkeypatch):
  fake = Sampler()
  monkeypatch.setattr(generate, 'clips', fake)
  monkeypatch.setattr(
    pipeline.Pipeline,
    '_embeds',
    lambda self, plan: PromptEmbeds((np.zeros((1, 2)),) * len(plan.prompts)),
  )
  return fake


@pytest.fixture(scope='module')
def pipe():
  return pipeline.Pipeline('digits', progress=False)


def ask(folder, **changes):
  base = dict(
    prompt=PROMPT,
    out=f'{folder}/a.mp4',
    size='32x32',
    frames=5,
    batch_size=1,
    sampling={'steps': 2},
  )
  return request.Request(**base | changes)


def names(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_a_stop_at_the_last_of_a_hundred_loses_one(pipe, sampler, tmp_path):
  sampling_request = ask(tmp_path, num=100)
  sampler.stop = 99, KeyboardInterrupt()
  with pytest.raises(KeyboardInterrupt) as e:
    pipe.write(sampling_request)
  assert e.value.__notes__ == [
    '99 of 100 videos are written; the same command writes the rest'
  ]
  expected = [f'a-{i:03d}.mp4{end}' for i in range(99) for end in ('', '.json')]
  assert names(tmp_path) == sorted(expected)
  first = (tmp_path / 'a-000.mp4').read_bytes()
  (tmp_path / 'a-042.mp4').unlink()
  sampler.stop, sampler.clips = (None, None), []
  lines = []
  written = pipe.write(
    sampling_request, report=lambda path, m: lines.append((path.name, m))
  )
  assert sampler.clips == [42, 99]
  assert (tmp_path / 'a-000.mp4').read_bytes() == first
  assert len(written) == 101 and lines[-1][0] == 'a-sheet.png'
  assert sum(m.get('kept', False) for _, m in lines) == 98
  levels = video_reader.read_video(tmp_path / 'a-099.mp4')
  assert abs(int(levels[0].mean()) - (20 * 99) % 256) < 3
  sampler.clips = []
  assert all(m.get('kept') for p, m in pipe.write(sampling_request).items())
  assert not sampler.clips


def test_videos_with_another_mark_are_of_another_request(
  pipe, sampler, tmp_path
):
  marks = dict(on_frames=lambda frames, metadata: frames)
  sampling_request = ask(tmp_path)
  pipe.write(sampling_request, mark='one key', **marks)
  (kept,) = pipe.write(sampling_request, mark='one key', **marks).values()
  assert kept['kept'] and sampler.clips == [0]
  for other in (dict(mark='another key') | marks, {}):
    with pytest.raises(ValueError, match='overwrite'):
      pipe.write(sampling_request, **other)


def test_the_state_of_a_long_video_has_its_mark(
  pipe, sampler, tmp_path, monkeypatch
):
  marks = []

  def stop(*args, identity, **kwargs):
    marks.append(identity['marked'])
    raise KeyboardInterrupt

  monkeypatch.setattr(pipeline.long_video, 'write', stop)
  unchanged = dict(on_frames=lambda frames, metadata: frames)
  for options in (dict(mark='key') | unchanged, {}):
    with pytest.raises(KeyboardInterrupt):
      pipe.write(ask(tmp_path, seconds=2), **options)
  assert marks == ['key', False]


def test_pictures_that_a_plan_reads_are_part_of_its_identity(pipe):
  """Of models that see them beside the latents, too."""
  resolved = plan.resolve(ask('x'), pipe.engine)
  hashes = {
    plan.metadata(
      dataclasses.replace(resolved, **{name: (pixels,)}), pipe.engine
    )['inputs_hash']
    for name in ('images', 'references')
    for pixels in np.arange(2, dtype=np.uint8).reshape(2, 1, 1, 1)
  }
  assert len(hashes - {None}) == 2


def test_batches_keep_their_clips(pipe, sampler, tmp_path):
  sampling_request = ask(tmp_path, num=5, batch_size=2)
  pipe.write(sampling_request)
  (tmp_path / 'a-003.mp4').unlink()
  sampler.clips = []
  pipe.write(sampling_request)
  assert sampler.clips == [2, 3]  # those of the same batch as before


def test_best_of_n_is_chosen_clip_by_clip(pipe, sampler, tmp_path, monkeypatch):
  monkeypatch.setattr(
    'spacetime.pipeline.best_of_n.best', lambda samples, joins: 1
  )
  sampling_request = ask(tmp_path, num=3, best_of=3, batch_size=2)
  written = pipe.write(sampling_request)
  videos = [m for m in written.values() if 'candidate' in m]
  assert [m['candidate'] for m in videos] == [1, 1, 1]
  for i in range(3):
    video = video_reader.read_video(tmp_path / f'a-00{i}.mp4')
    assert abs(int(video[0].mean()) - 20 * (3 * i + 1)) < 3
  (tmp_path / 'a-001.mp4').unlink()
  sampler.clips = []
  written = pipe.write(sampling_request)
  assert sampler.clips == [2, 3, 4, 5]
  video = video_reader.read_video(tmp_path / 'a-001.mp4')
  assert abs(int(video[0].mean()) - 80) < 3


def test_files_of_another_request_are_not_replaced(pipe, sampler, tmp_path):
  path = tmp_path / 'a.mp4'
  path.write_bytes(b'mine')
  with pytest.raises(ValueError, match='a.mp4 is there.*`overwrite`.*no sidec'):
    pipe.write(ask(tmp_path))
  assert path.read_bytes() == b'mine' and names(tmp_path) == ['a.mp4']
  pipe.write(ask(tmp_path, overwrite=True))
  assert path.read_bytes() != b'mine'
  for changes, difference in (
    ({'seed': 3}, 'seed is 0 there, 3 here'),
    ({'prompt': 'a blue 7 moves left'}, 'original_prompt is'),
    ({'sampling': {'steps': 4}}, 'sampling.steps is 2 there, 4 here'),
  ):
    with pytest.raises(ValueError, match=difference):
      pipe.write(ask(tmp_path, **changes))
  sampler.clips = []
  for changes in ({}, {'batch_size': 7}, {'sampling': {'steps': 2}}):
    pipe.write(ask(tmp_path, **changes))
  assert not sampler.clips
  pipe.write(ask(tmp_path, seed=3, overwrite=True))
  assert sampler.clips == [0]


def test_a_sheet_or_sidecar_of_the_user_is_not_replaced(
  pipe, sampler, tmp_path
):
  (tmp_path / 'a-sheet.png').write_bytes(b'mine')
  with pytest.raises(ValueError, match='a-sheet.png is there'):
    pipe.write(ask(tmp_path, num=2))
  (tmp_path / 'a.mp4.json').write_text('{"mine": 1}')
  with pytest.raises(ValueError, match='a.mp4.json is there'):
    pipe.write(ask(tmp_path))
  assert not sampler.clips


def test_folders_of_frames_are_kept_too(pipe, sampler, tmp_path):
  for out in ('a.png', 'b/'):
    sampling_request = ask(tmp_path, out=f'{tmp_path}/{out}', num=2)
    pipe.write(sampling_request)
    sampler.clips = []
    pipe.write(sampling_request)
    assert not sampler.clips
    with pytest.raises(ValueError, match='is there'):
      pipe.write(ask(tmp_path, out=f'{tmp_path}/{out}', num=2, seed=9))


def test_the_sidecar_is_complete(pipe, sampler, tmp_path):
  sampling_request = ask(tmp_path, negative_prompt='blue', sampling={
    'steps': 2, 'guidance': 1.0,
  })  # fmt: skip
  with pytest.warns(match="negative_prompt='blue': no effect"):
    pipe.write(sampling_request, command='spacetime sample --x')
  values = json.loads((tmp_path / 'a.mp4.json').read_text('utf-8'))
  assert values['command'] == 'spacetime sample --x'
  assert values['negative_prompt'] is None and values['seconds'] is None
  assert values['frames'] == values['clip_frames'] == 5
  assert values['compute_seconds'] >= 0 and values['batch_size'] == 1
  assert values['device'].startswith('cpu') and values['date'][:2] == '20'
  assert {'python', 'jax', 'jaxlib'} <= values['versions'].keys()


@pytest.mark.parametrize('name', ['a.mp4', 'a.webm', 'a.gif', 'a.png', 'a/'])
def test_a_full_disk_leaves_nothing(name, pipe, sampler, tmp_path, monkeypatch):
  """Encoders and files fail when they are written, and when they are closed."""
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def fail(*args, **kwargs):
    raise full

  monkeypatch.setattr('os.replace', fail)
  monkeypatch.setattr('pathlib.Path.replace', fail)
  with pytest.raises(OSError, match='No space') as e:
    pipe.write(ask(tmp_path, out=f'{tmp_path}/{name}'))
  assert e.value.__notes__[0].startswith('0 of 1 videos are written')
  assert names(tmp_path) == []


class _Full:
  """A stream whose encoder fails."""

  def encode(self, frame=None):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_writer_that_fails_removes_its_file(tmp_path, monkeypatch):
  frames = np.zeros((3, 32, 32, 3), np.uint8)
  for closing in (False, True):
    with (
      pytest.raises(OSError),
      video_writer.VideoWriter(tmp_path / 'a.mp4') as writer,
    ):
      writer.append(frames)
      writer._stream = _Full()
      if not closing:
        writer.append(frames)
    assert names(tmp_path) == []


def test_a_fragment_that_fails_is_cut_off(tmp_path, monkeypatch):
  path = tmp_path / 'a.part.mp4'
  frames = np.zeros((3, 32, 32, 3), np.uint8)
  writer = fragmented_mp4.Writer(path, fps=8)
  writer.append(frames)
  writer.cut()
  size = path.stat().st_size
  writer.append(frames)

  def fail(number):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr('os.fsync', fail)
  with pytest.raises(OSError):
    writer.cut()
  assert path.stat().st_size == size


def test_names_that_are_neither_file_nor_folder(pipe, tmp_path):
  for out in ('x', '-', 'x.', 'x.avi', 'x.mp4.'):
    with pytest.raises(ValueError, match='or a folder for PNG frames, with a'):
      outputs.targets(ask(tmp_path, out=f'{tmp_path}/{out}'), clips=1)
  with pytest.raises(ValueError, match='at most 10,000 videos'):
    outputs.targets(ask(tmp_path, num=9000), clips=18_000)


def test_files_follow_the_umask(pipe, sampler, tmp_path):
  before = os.umask(0o027)
  try:
    pipe.write(ask(tmp_path, num=2))
    from spacetime.media import files

    with files.atomic_write(tmp_path / 'x') as temporary:
      temporary.write_text('x')
  finally:
    os.umask(before)
  for path in tmp_path.iterdir():
    assert stat.S_IMODE(path.stat().st_mode) == 0o640, path


def test_a_command_that_is_stopped_ends_in_one_line(
  sampler, tmp_path, monkeypatch
):
  arguments = [f'--prompt={PROMPT}', f'--out={tmp_path}/a.mp4', '--num=3']
  arguments += ['--size=32x32', '--frames=5', '--batch_size=1']
  for error, code, text in (
    (KeyboardInterrupt(), 130, 'interrupted'),
    (KeyboardInterrupt(143), 143, 'interrupted'),  # SIGTERM
    (OSError(errno.ENOSPC, 'No space left'), 1, '[Errno 28] No space left'),
  ):
    sampler.stop = 1, error
    result = commands.run('sample', *arguments, '--overwrite')
    assert result.code == code and 'Traceback' not in result.err
    lines = [x for x in result.err.splitlines() if x.startswith('error: ')]
    assert lines == [
      f'error: {text}; 1 of 3 videos are written; the same command writes the '
      'rest'
    ]
    assert result.out.splitlines() == [f'{tmp_path}/a-000.mp4: {PROMPT}']
  sampler.stop = 1, RuntimeError('RESOURCE_EXHAUSTED: Out of memory: 9 GiB')
  result = commands.run('sample', *arguments, '--overwrite')
  assert result.code == 1
  assert 'error: out of memory: RESOURCE_EXHAUSTED: Out of mem' in result.err
  assert names(tmp_path) == ['a-000.mp4', 'a-000.mp4.json']
