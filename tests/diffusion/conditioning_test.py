"""What every mode gives: frames, what is known of them, what is written."""

import numpy as np
import pytest

from spacetime.diffusion import conditioning, conditioning_video
from spacetime.models.autoencoder import identity, wan

PIXELS = identity.IdentityAutoencoder(time=4)
CELLS = wan.WanAutoencoder(
  wan.WanAutoencoderConfig(
    base_dim=4,
    z_dim=3,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
  )
)


def numbered(frames, first=0, height=4, width=6):
  """Frames that are all of their own number."""
  number = np.arange(first, first + frames, dtype=np.uint8)
  return np.broadcast_to(
    number[:, None, None, None], (frames, height, width, 3)
  )


def numbers(frames_FHWC):
  return frames_FHWC[:, 0, 0, 0].tolist()


def known(window):
  """Frames that are known whole; none in part."""
  assert (window.cond_mask_FHW == window.cond_mask_FHW[:, :1, :1]).all()
  return np.flatnonzero(window.cond_mask_FHW[:, 0, 0]).tolist()


def made(window):
  """The numbers of what is written of a window of frames from 100 on."""
  return numbers(window.assemble(numbered(len(window.frames_FHWC), 100)))


def test_an_image_is_any_frame():
  image = numbered(1, 7)[0]
  window = conditioning_video.image(image, frames=9, at=8, hold=4)
  assert numbers(window.frames_FHWC) == [7] * 9
  assert made(window) == list(range(100, 109)) and window.length == 9
  # It is held for the frames of one latent frame, of which the first has one.
  for at, held in (
    (0, [0]),
    (1, [1, 2, 3, 4]),
    (4, [1, 2, 3, 4]),
    (5, [5, 6, 7, 8]),
  ):
    window = conditioning_video.image(image, frames=9, at=at, hold=4)
    assert known(window) == held


def test_forward_goes_on_from_the_end():
  window = conditioning_video.forward(numbered(7), frames=9, cond_frames=5)
  assert numbers(window.frames_FHWC) == [2, 3, 4, 5, 6, 6, 6, 6, 6]
  assert known(window) == [0, 1, 2, 3, 4]
  assert made(window) == [0, 1, *range(100, 109)] and window.length == 11


def test_backward_leads_to_the_beginning():
  window = conditioning_video.backward(numbered(7), frames=9, cond_frames=4)
  assert numbers(window.frames_FHWC) == [0, 0, 0, 0, 0, 0, 1, 2, 3]
  assert known(window) == [5, 6, 7, 8]
  assert made(window) == [*range(100, 109), 4, 5, 6]


def test_all_of_a_video_can_be_given():
  video = numbered(5)
  assert made(conditioning_video.forward(video, frames=9, cond_frames=5)) == [
    *range(100, 109)
  ]
  assert made(conditioning_video.backward(video, frames=9, cond_frames=5)) == [
    *range(100, 109)
  ]


def test_connect_leads_from_one_to_the_other():
  window = conditioning_video.connect(
    numbered(6), numbered(5, 50), frames=9, cond_frames=(3, 2)
  )
  assert numbers(window.frames_FHWC) == [3, 4, 5, 5, 5, 50, 50, 50, 51]
  assert known(window) == [0, 1, 2, 7, 8]
  assert made(window) == [0, 1, 2, *range(100, 109), 52, 53, 54]


def test_a_loop_leads_from_the_end_to_the_beginning():
  window = conditioning_video.loop(numbered(6), frames=9, cond_frames=(3, 2))
  assert numbers(window.frames_FHWC) == [3, 4, 5, 5, 5, 0, 0, 0, 1]
  assert known(window) == [0, 1, 2, 7, 8]
  assert made(window) == [0, 1, 2, 3, 4, 5, 103, 104, 105, 106]
  assert window.length == 10


def test_inpaint_keeps_the_rest_and_hides_what_was_there():
  video = numbered(3).copy()
  new = np.zeros((4, 6), bool)
  new[1:3, 2:5] = True
  video[:, new] = 255
  window = conditioning_video.inpaint(video, new)
  np.testing.assert_array_equal(window.cond_mask_FHW, np.stack([~new] * 3))
  np.testing.assert_array_equal(window.frames_FHWC, numbered(3))


def test_outpaint_lays_the_video_on_cells():
  video = numbered(3, height=2, width=6)
  window = conditioning_video.outpaint(video, height=8, width=14, cell=(2, 2))
  expected = np.zeros((3, 8, 14), bool)
  expected[:, 2:4, 4:10] = True  # not 3:5: a cell begins at 2
  np.testing.assert_array_equal(window.cond_mask_FHW, expected)
  np.testing.assert_array_equal(
    window.frames_FHWC, numbered(3, height=8, width=14)
  )


def test_an_edit_keeps_what_joins_what_follows():
  window = conditioning_video.edit(numbered(12), frames=9)
  assert known(window) == [] and made(window) == [*range(100, 109)]
  window = conditioning_video.edit(numbered(12), frames=9, cond_frames=4)
  assert known(window) == [5, 6, 7, 8]
  assert made(window) == [*range(100, 109), 9, 10, 11]
  new = np.zeros((4, 6), bool)
  new[2:] = True
  window = conditioning_video.edit(
    numbered(9), frames=9, cond_frames=4, mask_HW=new
  )
  assert (
    window.cond_mask_FHW[:5, :2].all()
    and not window.cond_mask_FHW[:5, 2:].any()
  )
  assert window.cond_mask_FHW[5:].all()
  assert numbers(window.frames_FHWC) == [*range(9)]


def test_pixels_know_every_value_by_itself():
  rng = np.random.default_rng(0)
  cond_mask_FHW = rng.random((9, 2, 3)) < 0.5
  found = PIXELS.latent_cond_mask(cond_mask_FHW)
  video = np.where(cond_mask_FHW[..., None], 1.0, -1.0)
  video = np.broadcast_to(video, (9, 2, 3, 3)).astype(np.float32)
  expected = np.asarray(PIXELS.encode({}, video[None]))[0] > 0
  np.testing.assert_array_equal(found, expected)


def test_cells_are_known_if_all_their_pixels_are():
  _, height, width = CELLS.stride
  cond_mask_FHW = np.ones((9, 2 * height, 3 * width), bool)
  cond_mask_FHW[0, 0, 0] = False
  cond_mask_FHW[4, height, width] = False
  found = CELLS.latent_cond_mask(cond_mask_FHW)
  assert found.shape == (3, 2, 3, 3)
  expected = np.ones((3, 2, 3), bool)
  expected[0, 0, 0] = expected[1, 1, 1] = False
  np.testing.assert_array_equal(found, np.stack([expected] * 3, axis=-1))


def test_frames_and_tokens_known_whole_are_given_and_the_rest_in_part():
  rng = np.random.default_rng(0)
  z = rng.normal(size=(2, 3, 2, 6, 4)).astype(np.float32)
  cond_mask_fhwc = np.zeros((3, 2, 6, 4), bool)
  patch = (1, 2, 3)
  plain = conditioning.from_mask(z, cond_mask_fhwc, patch=patch, strength=0.5)
  np.testing.assert_array_equal(plain.t_BT, [[0.5], [0.5]])
  assert plain.cond_mask_Bfhwc is None and plain.t_index_fhw is None
  cond_mask_fhwc[2] = True
  frame = conditioning.from_mask(z, cond_mask_fhwc, patch=patch)
  np.testing.assert_array_equal(frame.t_BT, [[1, 1, 0]] * 2)
  assert frame.cond_mask_Bfhwc is None and frame.t_index_fhw is None
  # All of a token of frame 1, and a part of the other one.
  cond_mask_fhwc[1, :, :4] = True
  tokens = conditioning.from_mask(z, cond_mask_fhwc, patch=patch, strength=0.5)
  np.testing.assert_array_equal(tokens.t_BT, [[0.5, 0.5, 0, 0]] * 2)
  np.testing.assert_array_equal(tokens.t_index_fhw[1, 1], [3, 3, 3, 1, 1, 1])
  assert (tokens.t_index_fhw[0] == 0).all() and (
    tokens.t_index_fhw[2] == 3
  ).all()
  np.testing.assert_array_equal(
    tokens.per_cell(tokens.t_BT)[1, 1, 0, :, 0], [0, 0, 0, 0.5, 0.5, 0.5]
  )
  expected = np.zeros((2, 3, 2, 6, 4), bool)
  expected[:, 1, :, 3] = True
  np.testing.assert_array_equal(tokens.cond_mask_Bfhwc, expected)
  np.testing.assert_array_equal(tokens.z_Bfhwc, z)


@pytest.mark.parametrize('codec', [PIXELS, CELLS], ids=['pixels', 'cells'])
def test_a_window_begins_in_the_middle_of_a_clip(codec):
  """The first latent frame is of its first frame alone, and known as that."""
  height, width = (2 * n for n in codec.stride[1:])
  video = numbered(20, height=height, width=width)
  window = conditioning_video.forward(video, frames=9, cond_frames=5)
  known_f = codec.latent_cond_mask(window.cond_mask_FHW).all((1, 2, 3))
  assert known_f.tolist() == [True, True, False]
  # Four are not the latent frames of five, at either end of a window.
  window = conditioning_video.forward(video, frames=9, cond_frames=4)
  known_f = codec.latent_cond_mask(window.cond_mask_FHW).all((1, 2, 3))
  assert known_f.tolist() == [True, False, False]
  window = conditioning_video.backward(video, frames=9, cond_frames=4)
  known_f = codec.latent_cond_mask(window.cond_mask_FHW).all((1, 2, 3))
  assert known_f.tolist() == [False, False, True]
