"""What is given: from a request to latents, levels and a mask, nothing more.

Every mode of sampling is a `Window`: frames of which some pixels are known.
The codec tells which values of the latents that makes known, and `given` says
at which level each latent frame begins:

  0         given: the network is told so, as in training (training/given.py)
  1         noise
  between   edited: noised to there, and back (SDEdit)

A token all of which is known, in a frame that is not, is given too: the table
of levels has a row of 0 for it, since a model that has learnt from given frames
follows given tokens (by far better than what comes next). Values that are known
within a token that is not (an edge of the mask, one of the four frames of a
latent frame) take the way of their token from noise to data, whose end is
known: z_t = (1 - t) z + t noise, with the noise they began as.
"""

import dataclasses

import einops
import jax
import jax.numpy as jnp
import numpy as np

from spacetime.diffusion import flow


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Condition:
  """Where sampling begins, and what is known of where it ends.

  Attributes:
    z_Bfhwc: float32, finite; read where it is known or edited.
    level_BT: float32 in [0, 1], where latents begin: (B, f), (B, 1) for all,
      which the network is told at no cost, or as row_fhw has it.
    row_fhw: int32, which of the T levels a latent cell has; None is that of its
      frame.
    known_Bfhwc: bool, values known of what is not given; None is none.
  """

  z_Bfhwc: jax.Array
  level_BT: jax.Array
  row_fhw: jax.Array | None = None
  known_Bfhwc: jax.Array | None = None

  def cells(self, t_BT: jax.Array) -> jax.Array:
    """A table of levels, ready to multiply latents."""
    if self.row_fhw is None:
      return flow.per_frame(t_BT)
    return jnp.take(t_BT, self.row_fhw, axis=1, mode='clip')[..., None]


def nothing(batch: int, latent: tuple[int, int, int, int]) -> Condition:
  """Text to video: all is noise. `latent` is (f, h, w, c)."""
  return Condition(
    jnp.zeros((batch, *latent), jnp.float32), jnp.ones((batch, 1), jnp.float32)
  )


def given(
  z_Bfhwc: jax.Array,
  known_fhwc: np.ndarray,
  *,
  patch: tuple[int, int, int],
  strength: float = 1.0,
) -> Condition:
  """Some values are known, the others begin at a level.

  Args:
    z_Bfhwc: latents of the window.
    known_fhwc: bool; a token all of which is known is given.
    patch: latent cells of a token; time is 1.
    strength: where the others begin: 1, or less to edit what is there.
  """
  batch, frames = z_Bfhwc.shape[:2]
  given_fhw = _tokens(known_fhwc, patch)
  whole_f = given_fhw.all((1, 2))
  level_T = np.where(whole_f, 0, strength)
  row_fhw = None
  if (given_fhw & ~whole_f[:, None, None]).any():
    level_T = np.append(level_T, 0)
    frame_f11 = np.arange(frames)[:, None, None]
    row_fhw = jnp.asarray(np.where(given_fhw, frames, frame_f11), jnp.int32)
  elif not whole_f.any():
    level_T = level_T[:1]
  level_T = level_T.astype(np.float32)
  parts_fhwc = known_fhwc & ~given_fhw[..., None]
  return Condition(
    jnp.asarray(z_Bfhwc, jnp.float32),
    jnp.broadcast_to(level_T, (batch, len(level_T))),
    row_fhw,
    jnp.broadcast_to(parts_fhwc, z_Bfhwc.shape) if parts_fhwc.any() else None,
  )


def _tokens(known_fhwc: np.ndarray, patch) -> np.ndarray:
  """Which cells are of tokens that are known whole, (f, h, w)."""
  _, a, b = patch
  token_fhw = einops.reduce(
    known_fhwc, 'f (h a) (w b) c -> f h w', np.all, a=a, b=b
  )
  return einops.repeat(token_fhw, 'f h w -> f (h a) (w b)', a=a, b=b)


@dataclasses.dataclass(frozen=True)
class Window:
  """What a mode gives, in pixels, and what is written of what it makes.

  The window is encoded as a clip of its own, whatever it was cut from. A
  causal autoencoder's first latent frame is of one frame and every later one
  of several and of what came before: latents from the middle of another clip
  could not stand at the start of this one, nor could its first one stand in
  the middle. What is not known is filled, so that what is encoded after it has
  a past: with the nearest frame that is known, standing still. When the rest
  has been made it is encoded again (generate.in_place).

  Attributes:
    frames_FHWC: uint8; what is not known is filled.
    known_FHW: bool.
    before_FHWC: written before the window; may be empty.
    after_FHWC: written after it.
    written: first frame of the window that is, and the one to stop before.
    looped: whether the video's end leads to its beginning.
  """

  frames_FHWC: np.ndarray
  known_FHW: np.ndarray
  before_FHWC: np.ndarray
  after_FHWC: np.ndarray
  written: tuple[int, int]
  looped: bool = False

  @property
  def length(self) -> int:
    """Frames that are written."""
    first, stop = self.written
    return len(self.before_FHWC) + stop - first + len(self.after_FHWC)

  def whole(self, made_FHWC: np.ndarray) -> np.ndarray:
    """The video of the frames that were made of the window."""
    made_FHWC = made_FHWC[slice(*self.written)]
    return np.concatenate([self.before_FHWC, made_FHWC, self.after_FHWC])


def _window(frames_FHWC, known, before=(), after=(), written=None) -> Window:
  """`known` is of frames (F,) or of pixels (F, H, W)."""
  shape = frames_FHWC.shape
  known = np.asarray(known).reshape(len(known), *np.shape(known)[1:] or (1, 1))
  none_FHWC = np.zeros((0, *shape[1:]), np.uint8)
  return Window(
    np.ascontiguousarray(frames_FHWC),
    np.broadcast_to(known, shape[:3]),
    before if len(before) else none_FHWC,
    after if len(after) else none_FHWC,
    written or (0, len(frames_FHWC)),
  )


def image(image_HWC: np.ndarray, *, frames: int, at: int, hold: int) -> Window:
  """A clip one of whose frames is an image.

  Args:
    image_HWC: uint8.
    frames: of the window.
    at: which.
    hold: frames of one latent frame. Where the image is not the first, which
      stands alone, it is held for all of them: what is known of a part of a
      latent frame alone says little while there is much noise, which is when
      places are chosen.
  """
  place_F = np.arange(frames)
  known_F = (place_F + hold - 1) // hold == (at + hold - 1) // hold
  return _window(np.stack([image_HWC] * frames), known_F)


def forward(video_FHWC: np.ndarray, *, frames: int, given: int) -> Window:
  """A video goes on: its last frames are the window's first."""
  place = np.minimum(np.arange(frames), given - 1) + len(video_FHWC) - given
  return _window(
    video_FHWC[place], np.arange(frames) < given, before=video_FHWC[:-given]
  )


def backward(video_FHWC: np.ndarray, *, frames: int, given: int) -> Window:
  """What comes before a video: its first frames are the window's last."""
  place = np.maximum(np.arange(frames) - (frames - given), 0)
  return _window(
    video_FHWC[place],
    np.arange(frames) >= frames - given,
    after=video_FHWC[given:],
  )


def connect(
  first_FHWC: np.ndarray,
  second_FHWC: np.ndarray,
  *,
  frames: int,
  given: tuple[int, int],
) -> Window:
  """From one video to another: its last frames, new ones, the other's first.

  Args:
    first_FHWC: uint8.
    second_FHWC: of the same size.
    frames: of the window.
    given: of the first video and of the second.
  """
  head = forward(first_FHWC, frames=frames, given=given[0])
  tail = backward(second_FHWC, frames=frames, given=given[1])
  # Of what is new, each half holds the nearer end.
  near = (frames + given[0] - given[1]) // 2
  return _window(
    np.concatenate([head.frames_FHWC[:near], tail.frames_FHWC[near:]]),
    (head.known_FHW | tail.known_FHW),
    before=head.before_FHWC,
    after=tail.after_FHWC,
  )


def loop(
  video_FHWC: np.ndarray, *, frames: int, given: tuple[int, int]
) -> Window:
  """From a video's end to its beginning: played again and again, no seam."""
  window = connect(video_FHWC, video_FHWC, frames=frames, given=given)
  return dataclasses.replace(
    window,
    before_FHWC=video_FHWC,
    after_FHWC=video_FHWC[:0],
    written=(given[0], frames - given[1]),
    looped=True,
  )


def inpaint(video_FHWC: np.ndarray, new_HW: np.ndarray) -> Window:
  """A video part of whose picture is made anew.

  Args:
    video_FHWC: uint8.
    new_HW: bool, the part. It is filled with the mean of the rest, so that
      nothing of what was there comes through the autoencoder.
  """
  rest_nC = video_FHWC[:, ~new_HW]
  mean_F1C = rest_nC.mean(1, keepdims=True)
  frames_FHWC = video_FHWC.copy()
  frames_FHWC[:, new_HW] = np.round(mean_F1C).astype(np.uint8)
  return _window(frames_FHWC, np.stack([~new_HW] * len(video_FHWC)))


def outpaint(
  video_FHWC: np.ndarray, *, height: int, width: int, cell: tuple[int, int]
) -> Window:
  """A video in the middle of a larger picture.

  Args:
    video_FHWC: uint8, no larger.
    height: rows of the picture.
    width: columns.
    cell: rows and columns of a latent cell, on whose edges the video is laid.
  """
  frames, *size, _ = video_FHWC.shape
  top, left = (
    (whole - part) // 2 // side * side
    for whole, part, side in zip((height, width), size, cell, strict=True)
  )
  view = slice(top, top + size[0]), slice(left, left + size[1])
  frames_FHWC = np.zeros((frames, height, width, 3), np.uint8)
  frames_FHWC[:, *view] = video_FHWC
  new_HW = np.ones((height, width), bool)
  new_HW[view] = False
  return inpaint(frames_FHWC, new_HW)


def edit(
  video_FHWC: np.ndarray,
  *,
  frames: int,
  given: int = 0,
  new_HW: np.ndarray | None = None,
) -> Window:
  """A video that is noised and made again: all of it, or less.

  Args:
    video_FHWC: uint8, at least as long as the window.
    frames: of the window.
    given: its last frames that stay, so that it joins what follows, which is
      written after it; 0 keeps none.
    new_HW: the part of the picture that is edited; None is all.
  """
  known_FHW = np.zeros(video_FHWC[:frames].shape[:3], bool)
  known_FHW[frames - given :] = True
  if new_HW is not None:
    known_FHW |= ~new_HW
  after = video_FHWC[frames:] if given else ()
  return _window(video_FHWC[:frames], known_FHW, after=after)
