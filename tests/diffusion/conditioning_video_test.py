"""Conditioning videos of the modes: frames, their mask, the output around."""

import numpy as np

from spacetime.diffusion import conditioning_video


def numbered(frames, first=0, height=4, width=6):
  """Frames filled with their index."""
  number = np.arange(first, first + frames, dtype=np.uint8)
  return np.broadcast_to(
    number[:, None, None, None], (frames, height, width, 3)
  )


def numbers(frames_FHWC):
  return frames_FHWC[:, 0, 0, 0].tolist()


def known(clip):
  """Indices of the known frames, of which none is known in part."""
  assert (clip.cond_mask_FHW == clip.cond_mask_FHW[:, :1, :1]).all()
  return np.flatnonzero(clip.cond_mask_FHW[:, 0, 0]).tolist()


def assembled(clip):
  """The frames of the output if those of the clip are sampled as 100, ..."""
  return numbers(clip.assemble(numbered(len(clip.frames_FHWC), 100)))


def test_an_image_can_be_any_frame():
  image = numbered(1, 7)[0]
  clip = conditioning_video.images({8: image}, frames=9, hold=4)
  assert numbers(clip.frames_FHWC) == [7] * 9
  assert assembled(clip) == list(range(100, 109)) and clip.length == 9
  # It is held for the frames of one latent frame, of which the first has one.
  for at, held in (
    (0, [0]),
    (1, [1, 2, 3, 4]),
    (4, [1, 2, 3, 4]),
    (5, [5, 6, 7, 8]),
  ):
    clip = conditioning_video.images({at: image}, frames=9, hold=4)
    assert known(clip) == held


def test_forward_begins_with_the_last_frames():
  clip = conditioning_video.forward(numbered(7), frames=9, cond_frames=5)
  assert numbers(clip.frames_FHWC) == [2, 3, 4, 5, 6, 6, 6, 6, 6]
  assert known(clip) == [0, 1, 2, 3, 4]
  assert assembled(clip) == [0, 1, *range(100, 109)] and clip.length == 11


def test_backward_ends_with_the_first_frames():
  clip = conditioning_video.backward(numbered(7), frames=9, cond_frames=4)
  assert numbers(clip.frames_FHWC) == [0, 0, 0, 0, 0, 0, 1, 2, 3]
  assert known(clip) == [5, 6, 7, 8]
  assert assembled(clip) == [*range(100, 109), 4, 5, 6]


def test_all_frames_of_a_video_can_be_known():
  video = numbered(5)
  assert assembled(
    conditioning_video.forward(video, frames=9, cond_frames=5)
  ) == [*range(100, 109)]
  assert assembled(
    conditioning_video.backward(video, frames=9, cond_frames=5)
  ) == [*range(100, 109)]


def test_connect_begins_with_one_video_and_ends_with_the_other():
  clip = conditioning_video.connect(
    numbered(6), numbered(5, 50), frames=9, cond_frames=(3, 2)
  )
  assert numbers(clip.frames_FHWC) == [3, 4, 5, 5, 5, 50, 50, 50, 51]
  assert known(clip) == [0, 1, 2, 7, 8]
  assert assembled(clip) == [0, 1, 2, *range(100, 109), 52, 53, 54]


def test_a_loop_ends_with_the_first_frames():
  clip = conditioning_video.loop(numbered(6), frames=9, cond_frames=(3, 2))
  assert numbers(clip.frames_FHWC) == [3, 4, 5, 5, 5, 0, 0, 0, 1]
  assert known(clip) == [0, 1, 2, 7, 8]
  assert assembled(clip) == [0, 1, 2, 3, 4, 5, 103, 104, 105, 106]
  assert clip.length == 10


def test_inpaint_keeps_the_rest_and_fills_the_mask():
  video = numbered(3).copy()
  new = np.zeros((4, 6), bool)
  new[1:3, 2:5] = True
  video[:, new] = 255
  clip = conditioning_video.inpaint(video, new)
  np.testing.assert_array_equal(clip.cond_mask_FHW, np.stack([~new] * 3))
  np.testing.assert_array_equal(clip.frames_FHWC, numbered(3))


def test_outpaint_aligns_the_video_to_cells():
  video = numbered(3, height=2, width=6)
  clip = conditioning_video.outpaint(video, height=8, width=14, cell=(2, 2))
  expected = np.zeros((3, 8, 14), bool)
  expected[:, 2:4, 4:10] = True  # not 3:5: a cell begins at 2
  np.testing.assert_array_equal(clip.cond_mask_FHW, expected)
  np.testing.assert_array_equal(
    clip.frames_FHWC, numbered(3, height=8, width=14)
  )


def test_an_edit_keeps_frames_that_join_the_following_ones():
  clip = conditioning_video.edit(numbered(12), frames=9)
  assert known(clip) == [] and assembled(clip) == [*range(100, 109)]
  clip = conditioning_video.edit(numbered(12), frames=9, cond_frames=4)
  assert known(clip) == [5, 6, 7, 8]
  assert assembled(clip) == [*range(100, 109), 9, 10, 11]
  new = np.zeros((4, 6), bool)
  new[2:] = True
  clip = conditioning_video.edit(
    numbered(9), frames=9, cond_frames=4, mask_HW=new
  )
  assert (
    clip.cond_mask_FHW[:5, :2].all() and not clip.cond_mask_FHW[:5, 2:].any()
  )
  assert clip.cond_mask_FHW[5:].all()
  assert numbers(clip.frames_FHWC) == [*range(9)]
