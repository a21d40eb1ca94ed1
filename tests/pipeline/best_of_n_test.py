"""Best-of-n: the smoothest of several samples, by optical flow."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from spacetime.data.digits import examples
from spacetime.diffusion import conditioning_video
from spacetime.evaluation import seams
from spacetime.pipeline import best_of_n
from spacetime.pipeline.prompt_embeds import PromptEmbeds
from tests.diffusion.conditioning_video_test import numbered
from tests.evaluation.seams_test import WORLD, squares

EVEN = [4, 6, 8, 10, 12, 14, 16, 18]


def across(xs, join=4, **kwargs):
  return best_of_n.roughness(squares([(20, x) for x in xs], **kwargs), join)


def test_joins_of_generated_and_conditioning_frames():
  clip = numbered(14)
  ahead = conditioning_video.forward(clip, frames=9, cond_frames=5)
  back = conditioning_video.backward(clip, frames=9, cond_frames=4)
  between = conditioning_video.connect(
    clip, clip, frames=13, cond_frames=(5, 4)
  )
  assert (
    best_of_n.joins(ahead),
    best_of_n.joins(back),
    best_of_n.joins(between),
  ) == (
    (14,),
    (5,),
    (14, 18),
  )
  loop = conditioning_video.loop(clip, frames=13, cond_frames=(5, 4))
  assert best_of_n.joins(loop) == (0, 14) and loop.length == 18
  # What stands alone moves nowhere: no motion leads to it or from it.
  still = conditioning_video.images({0: clip[0]}, frames=9, hold=4)
  held = conditioning_video.images({6: clip[0]}, frames=13, hold=4)
  assert (best_of_n.joins(still), best_of_n.joins(held)) == ((), (5, 9))
  partial = conditioning_video.edit(clip, frames=9, cond_frames=4)
  complete = conditioning_video.edit(clip, frames=9)
  part = conditioning_video.inpaint(clip, np.eye(*clip.shape[1:3], dtype=bool))
  assert (
    best_of_n.joins(partial),
    best_of_n.joins(complete),
    best_of_n.joins(part),
  ) == (
    (5,),
    (),
    (),
  )


def test_even_motion_is_smooth_and_rougher_the_more_it_changes():
  even = across(EVEN)
  changed = [across(EVEN[:4] + [x + by for x in EVEN[4:]]) for by in (1, 2, 4)]
  assert even < 0.3 / 64
  assert even < changed[0] < changed[1] < changed[2]
  # One step is longer by so much: in shares of the shorter side.
  np.testing.assert_allclose(changed, np.array([1, 2, 4]) / 64, rtol=0.3)


def test_a_change_elsewhere_is_no_change_at_the_join():
  turned = [*EVEN[:6], 12, 10]
  assert across(turned, 3) == across(EVEN, 3)
  assert across(turned, 6) > 3 * across(EVEN, 6)


def test_a_loop_closes_from_its_end_to_its_beginning():
  there_and_back = [4, 6, 8, 10, 10, 8, 6, 4]
  turns = across(there_and_back, 0)
  np.testing.assert_allclose(turns, across([8, 6, 4, 4, 6, 8], 3), rtol=1e-6)
  jumps = across(EVEN, 0)
  assert jumps > 2 * turns


def test_shape_says_nothing_of_motion():
  """Where figures are counts, not what they are."""
  frames = squares([(20, x) for x in EVEN])
  soft = frames.copy()
  soft[4:] = ndimage.gaussian_filter(frames[4:], (0, 2, 2, 0))
  far = across(EVEN[:4] + [x + 3 for x in EVEN[4:]])
  assert best_of_n.roughness(soft, 4) < far / 2


def test_colours_of_one_brightness_differ():
  frames = squares([(20, x) for x in [4, 6, 8, 10, 15, 17, 19, 21]])
  there = frames[..., :1] > 100
  flat = np.where(there, np.uint8([200, 60, 100]), np.uint8([60, 131, 100]))
  np.testing.assert_allclose(
    best_of_n.roughness(flat, 4), best_of_n.roughness(frames, 4), rtol=0.2
  )


def test_nothing_to_be_seen_is_smooth():
  assert best_of_n.roughness(np.full((6, 64, 64, 3), 90, np.uint8), 3) == 0.0


def test_the_size_of_the_picture_is_no_matter():
  frames = squares([(20, x) for x in [4, 6, 8, 10, 15, 17, 19, 21]])
  large = np.stack(
    [np.asarray(Image.fromarray(f).resize((240, 192))) for f in frames]
  )
  np.testing.assert_allclose(
    best_of_n.roughness(large, 4), best_of_n.roughness(frames, 4), rtol=0.15
  )


@pytest.mark.slow
def test_it_agrees_with_characters_that_are_followed():
  """Of real clips that lack frames, it finds the one that lacks fewest, as the
  seam score does, which knows the world."""
  clips = [
    examples.example(i, world=WORLD, split='train', seed=5)['video']
    for i in range(8)
  ]
  values, known = [], []
  for clip in clips:
    cut = [np.concatenate([clip[:7], clip[7 + k :]]) for k in (0, 1, 2, 4)]
    values.append([best_of_n.roughness(v, 7) for v in cut])
    known.append([seams.step(v, 7).velocity for v in cut])
  assert np.corrcoef(np.ravel(values), np.ravel(known))[0, 1] > 0.8


def test_the_smoothest_is_best():
  rough = squares([(20, x) for x in [4, 6, 8, 10, 15, 17, 19, 21]])
  even = squares([(20, x) for x in EVEN])
  assert best_of_n.best([rough, rough, even], [4]) == 2
  assert best_of_n.best([even, rough, rough], [4]) == 0
  assert best_of_n.best([rough], [4]) == 0


def test_without_joins_the_steadiest_is_best():
  jumps = squares([(20, x) for x in [4, 6, 8, 10, 12, 14, 21, 23]])
  even = squares([(20, x) for x in EVEN])
  assert best_of_n.best([jumps, even], []) == 1
  assert best_of_n.best([even, jumps], []) == 0
  assert best_of_n.best([jumps, even], [2]) == 0  # both join as smoothly


def test_of_stills_the_sharpest_is_best():
  sharp = squares([(20, 20)])
  soft = ndimage.gaussian_filter(sharp, (0, 2, 2, 0))
  assert best_of_n.best([soft, sharp, soft], []) == 1


def test_texts_are_repeated_clip_by_clip():
  a, b, away = (np.full((1, 2), i) for i in range(3))
  embeds = PromptEmbeds((a, b), (away, away)).repeated(2)
  assert [text[0, 0] for text in embeds.text] == [0, 0, 1, 1]
  assert [text[0, 0] for text in embeds.negative] == [2] * 4
  assert PromptEmbeds((a,)).repeated(3).negative == ()
