"""The front door: one object for every mode, in a few lines of Python."""

import numpy as np
import pytest

import spacetime

SMALL = dict(steps=2, frames=5, size=(32, 32), guidance=1.0)
PROMPT = 'a blue 7 wanders about'


@pytest.fixture(scope='module')
def pipe():
  return spacetime.load('digits', progress=False)


@pytest.fixture(scope='module')
def clip(pipe):
  return pipe('a red 3 moves to the right', seed=7, **SMALL)


def decibels(actual, expected):
  """PSNR: frames that are known pass through the autoencoder."""
  error = np.square(actual.astype(float) - expected).mean()
  return 10 * np.log10(255**2 / error)


def test_the_example(pipe, clip, tmp_path):
  path = clip.save(tmp_path / 'three.mp4')
  assert (tmp_path / 'three.mp4.json').exists()
  assert spacetime.read_video(path).shape == clip.shape == (5, 32, 32, 3)
  assert clip.metadata['seed'] == 7 and clip.fps == 8
  assert '<video' in clip._repr_html_()
  first = pipe('a blue 7 moves up', image=clip.frames[0], **SMALL)
  assert decibels(first.frames[0], clip.frames[0]) > 25
  longer = pipe.extend(clip, PROMPT, cond_frames=1, **SMALL)
  assert len(longer) == 5 + 4
  np.testing.assert_array_equal(longer.frames[:4], clip.frames[:4])
  assert decibels(longer.frames[4], clip.frames[4]) > 25
  before = pipe.extend(clip, PROMPT, backward=True, cond_frames=4, **SMALL)
  np.testing.assert_array_equal(before.frames[-1], clip.frames[-1])  # not read
  assert len(pipe.still(PROMPT, steps=2, size=(32, 32))) == 1


def test_every_mode_takes_videos_arrays_and_paths(pipe, clip, tmp_path):
  path = clip.save(tmp_path / 'clip.mp4')
  nine = SMALL | {'frames': 9}
  assert len(pipe.loop(clip, PROMPT, **nine)) > 5
  assert len(pipe.connect(clip.frames, path, PROMPT, **nine)) > 10
  mask_HW = np.zeros((32, 32), bool)
  mask_HW[:, :16] = True
  inpainted = pipe.inpaint(clip, mask_HW, PROMPT, **SMALL)
  known = inpainted.frames[:, :, 16:], clip.frames[:, :, 16:]
  assert decibels(*known) > 25
  size = SMALL | {'size': (64, 32)}
  size.pop('size')
  assert pipe.outpaint(clip, (64, 32), PROMPT, **size).shape == (5, 32, 64, 3)
  assert pipe.edit(clip, PROMPT, strength=0.6, **SMALL).shape == clip.shape


def test_a_clip_of_a_batch_is_the_clip_alone_with_its_seed(pipe):
  videos = pipe(['a red 3', 'a blue 7'], seeds=[3, 9], **SMALL)
  alone = pipe('a blue 7', seed=9, **SMALL)
  np.testing.assert_allclose(videos[1].frames.astype(int), alone.frames, atol=1)


def test_a_second_call_compiles_nothing_and_reports_every_step(pipe, clip):
  programs = dict(pipe.engine._programs)
  sizes = {k: p._cache_size() for k, p in programs.items() if 'step' in k}
  steps = []
  again = pipe(
    'a red 3 moves to the right',
    seed=7,
    num_inference_steps=2,
    num_frames=5,
    height=32,
    width=32,
    guidance_scale=1.0,
    callback=lambda *progress: steps.append(progress),
  )
  np.testing.assert_array_equal(again.frames, clip.frames)
  assert steps == [(1, 2), (2, 2)]
  assert programs.keys() == pipe.engine._programs.keys()
  for key, size in sizes.items():
    assert programs[key]._cache_size() == size


def test_refuses_by_setting(pipe):
  for settings, text in (
    ({'stepz': 3}, 'stepz=3: expected a known setting; did you mean `steps`'),
    ({'steps': 0}, 'steps=0: expected'),
    ({'num_frames': 6}, 'frames=6: expected 4k.1'),
    ({'image': 'none.png'}, "image='none.png': expected an image file"),
    ({'frames': 5, 'num_frames': 5}, 'expected `frames` once'),
  ):
    with pytest.raises(ValueError, match=text):
      pipe('a red 3', **settings)
