"""Which clips are sampled with the skip-layer guidance of a checkpoint."""

import numpy as np
import pytest

from spacetime.pipeline import plan as plan_lib
from spacetime.pipeline.pipeline import Pipeline
from spacetime.pipeline.request import Request
from spacetime.pipeline.video import Video

CLIP = Video(np.zeros((17, 64, 64, 3), np.uint8), fps=8)
PICTURE = CLIP.frames[0]


@pytest.fixture(scope='module')
def engine():
  return Pipeline('digits').engine


def skipped(engine, *, sampling=None, **values):
  request = Request(
    prompt='a red 3 moves up',
    prompt_embeds_cache='',
    sampling=sampling or {},
    **values,
  )
  return plan_lib.resolve(request, engine).settings.skip_layers


@pytest.mark.parametrize(
  'values, sampling',
  [
    ({}, {}),
    ({'mode': 'still'}, {}),
    ({'mode': 'edit', 'video': CLIP}, {'strength': 0.9}),
  ],
)
def test_clips_of_their_own_are(engine, values, sampling):
  trained = engine.settings().skip_layers
  assert trained and skipped(engine, sampling=sampling, **values) == trained
  sampling = sampling | {'skip_layers': ()}
  assert skipped(engine, sampling=sampling, **values) == ()


@pytest.mark.parametrize(
  'values',
  [
    {'image': PICTURE},
    {'mode': 'extend', 'video': CLIP},
    {'mode': 'extend_backward', 'video': CLIP},
    {'mode': 'loop', 'video': CLIP},
    {'mode': 'connect', 'video': CLIP, 'video2': CLIP},
    {'seconds': 6.0},
  ],
)
def test_clips_that_go_on_from_known_frames_are_not(engine, values):
  assert skipped(engine, **values) == ()
  # Nor with a setting that is not set, but with one that is.
  assert skipped(engine, sampling={'skip_layers': None}, **values) == ()
  assert skipped(engine, sampling={'skip_layers': (1,)}, **values) == (1,)
