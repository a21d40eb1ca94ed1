"""The conditioning video of each mode of sampling: pixels and their mask."""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class ConditioningVideo:
  """Known pixels of a clip to sample, and the frames around the clip.

  It is encoded as a separate clip, independent of its source video. A causal
  autoencoder's first latent frame encodes one frame; every later one encodes
  several, and depends on those before: latents from the middle of another clip
  cannot stand at the start of this one, nor can its first one stand in the
  middle. Unknown pixels repeat the nearest known frame, so that frames encoded
  after them have a past; known frames are encoded again once the unknown ones
  have been sampled (pipeline/generate.py).

  Attributes:
    frames_FHWC: uint8; unknown pixels are filled.
    cond_mask_FHW: bool, known pixels.
    before_FHWC: frames of the output before the clip; may be empty.
    after_FHWC: frames of the output after it.
    output_range: first frame of the clip in the output, and the one to stop
      before.
    loops: whether the output's end continues at its beginning.
    guides: whether unknown pixels show what to generate, as outlines or depth,
      for a model with control blocks.
  """

  frames_FHWC: np.ndarray
  cond_mask_FHW: np.ndarray
  before_FHWC: np.ndarray
  after_FHWC: np.ndarray
  output_range: tuple[int, int]
  loops: bool = False
  guides: bool = False

  @property
  def length(self) -> int:
    """Frames of the output."""
    first, stop = self.output_range
    return len(self.before_FHWC) + stop - first + len(self.after_FHWC)

  def assemble(self, sampled_FHWC: np.ndarray) -> np.ndarray:
    """The output video around the sampled clip."""
    sampled_FHWC = sampled_FHWC[slice(*self.output_range)]
    return np.concatenate([self.before_FHWC, sampled_FHWC, self.after_FHWC])


def _make(
  frames_FHWC, cond_mask, before=(), after=(), output_range=None
) -> ConditioningVideo:
  """`cond_mask` is of frames (F,) or of pixels (F, H, W)."""
  shape = frames_FHWC.shape
  mask = np.asarray(cond_mask)
  mask = mask.reshape(len(mask), *mask.shape[1:] or (1, 1))
  empty_FHWC = np.zeros((0, *shape[1:]), np.uint8)
  return ConditioningVideo(
    np.ascontiguousarray(frames_FHWC),
    np.broadcast_to(mask, shape[:3]),
    before if len(before) else empty_FHWC,
    after if len(after) else empty_FHWC,
    output_range or (0, len(frames_FHWC)),
  )


def images(
  images_HWC: Mapping[int, np.ndarray], *, frames: int, hold: int
) -> ConditioningVideo:
  """Images to video: a clip with some known frames.

  Args:
    images_HWC: uint8 images by the index of their frame.
    frames: length of the clip.
    hold: frames of one latent frame. Any image but the first, which has a
      latent frame of its own, is held for all of them: one known frame of a
      latent frame constrains little at high noise, which is when the layout is
      decided.

  Raises:
    ValueError: two images in one latent frame.
  """
  latent_F = (np.arange(frames) + hold - 1) // hold
  frame_of = {int(latent_F[at]): at for at in sorted(images_HWC)}
  if len(frame_of) < len(images_HWC):
    raise ValueError(
      f'frames {sorted(images_HWC)}: expected images in latent frames of '
      f'their own, of {hold} frames'
    )
  # Unknown frames repeat the nearest known one, the earlier of two.
  known = np.array(sorted(frame_of))
  nearest_F = np.abs(latent_F[:, None] - known).argmin(1)
  frames_FHWC = np.stack([images_HWC[frame_of[known[i]]] for i in nearest_F])
  return _make(frames_FHWC, np.isin(latent_F, known))


def control(video_FHWC: np.ndarray, *, frames: int) -> ConditioningVideo:
  """Guides a clip by a video of outlines, depth or poses; nothing is known."""
  clip = _make(video_FHWC[:frames], np.zeros(frames, bool))
  return dataclasses.replace(clip, guides=True)


def forward(
  video_FHWC: np.ndarray, *, frames: int, cond_frames: int
) -> ConditioningVideo:
  """Extends a video: its last frames are the clip's first."""
  index = np.minimum(np.arange(frames), cond_frames - 1)
  index += len(video_FHWC) - cond_frames
  return _make(
    video_FHWC[index],
    np.arange(frames) < cond_frames,
    before=video_FHWC[:-cond_frames],
  )


def backward(
  video_FHWC: np.ndarray, *, frames: int, cond_frames: int
) -> ConditioningVideo:
  """Extends a video backward: its first frames are the clip's last."""
  index = np.maximum(np.arange(frames) - (frames - cond_frames), 0)
  return _make(
    video_FHWC[index],
    np.arange(frames) >= frames - cond_frames,
    after=video_FHWC[cond_frames:],
  )


def connect(
  first_FHWC: np.ndarray,
  second_FHWC: np.ndarray,
  *,
  frames: int,
  cond_frames: tuple[int, int],
) -> ConditioningVideo:
  """Connects the end of one video to the start of another by new frames.

  Args:
    first_FHWC: uint8.
    second_FHWC: of the same size.
    frames: length of the clip.
    cond_frames: known frames of the first video and of the second.
  """
  head = forward(first_FHWC, frames=frames, cond_frames=cond_frames[0])
  tail = backward(second_FHWC, frames=frames, cond_frames=cond_frames[1])
  # Each half of the unknown frames repeats the nearer end.
  middle = (frames + cond_frames[0] - cond_frames[1]) // 2
  return _make(
    np.concatenate([head.frames_FHWC[:middle], tail.frames_FHWC[middle:]]),
    (head.cond_mask_FHW | tail.cond_mask_FHW),
    before=head.before_FHWC,
    after=tail.after_FHWC,
  )


def loop(
  video_FHWC: np.ndarray, *, frames: int, cond_frames: tuple[int, int]
) -> ConditioningVideo:
  """Connects a video's end to its beginning, so that it repeats seamlessly."""
  clip = connect(video_FHWC, video_FHWC, frames=frames, cond_frames=cond_frames)
  return dataclasses.replace(
    clip,
    before_FHWC=video_FHWC,
    after_FHWC=video_FHWC[:0],
    output_range=(cond_frames[0], frames - cond_frames[1]),
    loops=True,
  )


def inpaint(video_FHWC: np.ndarray, mask_HW: np.ndarray) -> ConditioningVideo:
  """Replaces a part of a video's picture.

  Args:
    video_FHWC: uint8.
    mask_HW: bool, the part to replace. It is filled with the mean of the rest,
      so that none of the old content leaks through the autoencoder.
  """
  rest_nC = video_FHWC[:, ~mask_HW]
  mean_F1C = rest_nC.mean(1, keepdims=True)
  frames_FHWC = video_FHWC.copy()
  frames_FHWC[:, mask_HW] = np.round(mean_F1C).astype(np.uint8)
  return _make(frames_FHWC, np.stack([~mask_HW] * len(video_FHWC)))


def outpaint(
  video_FHWC: np.ndarray, *, height: int, width: int, cell: tuple[int, int]
) -> ConditioningVideo:
  """Extends a video's picture on all sides.

  Args:
    video_FHWC: uint8, no larger than the new picture.
    height: height of the new picture in pixels.
    width: width of the new picture in pixels.
    cell: height and width of a latent cell in pixels; the video is aligned to
      cells.
  """
  frames, *size, _ = video_FHWC.shape
  top, left = (
    (outer - inner) // 2 // side * side
    for outer, inner, side in zip((height, width), size, cell, strict=True)
  )
  view = slice(top, top + size[0]), slice(left, left + size[1])
  frames_FHWC = np.zeros((frames, height, width, 3), np.uint8)
  frames_FHWC[:, *view] = video_FHWC
  mask_HW = np.ones((height, width), bool)
  mask_HW[view] = False
  return inpaint(frames_FHWC, mask_HW)


def edit(
  video_FHWC: np.ndarray,
  *,
  frames: int,
  cond_frames: int = 0,
  mask_HW: np.ndarray | None = None,
) -> ConditioningVideo:
  """Noises and denoises a video, all of it or a part.

  Args:
    video_FHWC: uint8, at least as long as the clip.
    frames: length of the clip.
    cond_frames: last frames of the clip that stay, so that it joins the frames
      that follow it, which are appended to the output; 0 is none.
    mask_HW: bool, the part of the picture to edit; None is all.
  """
  cond_mask_FHW = np.zeros(video_FHWC[:frames].shape[:3], bool)
  cond_mask_FHW[frames - cond_frames :] = True
  if mask_HW is not None:
    cond_mask_FHW |= ~mask_HW
  after = video_FHWC[frames:] if cond_frames else ()
  return _make(video_FHWC[:frames], cond_mask_FHW, after=after)
