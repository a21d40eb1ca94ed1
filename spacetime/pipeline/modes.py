"""The modes of `sample`: their flags and files, checked, as one window.

What a mode is, is in sampling/conditions.py; here is what it needs.
"""

from typing import Any, Protocol

import numpy as np
from absl import logging

from spacetime.data import geometry
from spacetime.diffusion import conditioning_video
from spacetime.pipeline import inputs

# Mode -> (flags it needs, flags it may have).
MODES = {
  'text': ((), ()),
  'still': ((), ()),
  'image': (('image',), ('image_at',)),
  'extend': (('video',), ('given',)),
  'extend_backward': (('video',), ('given',)),
  'loop': (('video',), ('given',)),
  'connect': (('video', 'video2'), ('given',)),
  'inpaint': (('video', 'mask'), ()),
  'outpaint': (('video',), ()),
  'edit': (('video', 'strength'), ('mask', 'given')),
}
# What has to come from one place to another wants time for it.
BETWEEN = ('loop', 'connect')
FLAGS = ('image', 'image_at', 'video', 'video2', 'mask', 'strength', 'given')


class Asked(Protocol):
  """The flags that are read here; None where one is not given."""

  mode: str | None
  image: str | None
  image_at: str | None
  video: str | None
  video2: str | None
  mask: str | None
  strength: float | None
  given: int | None
  frames: int | None
  seconds: float | None


def name(asked: Asked) -> str:
  """The mode: --mode, or what --image implies.

  Raises:
    ValueError: no such mode, or flags that it lacks or has no use for.
  """
  mode = asked.mode or ('image' if asked.image else 'text')
  if mode not in MODES:
    raise ValueError(f'--mode={mode}: expected one of {", ".join(MODES)}')
  needed, allowed = MODES[mode]
  if asked.seconds is not None and 'given' not in allowed:
    allowed += ('given',)  # from chunk to chunk
  for flag in FLAGS:
    value = getattr(asked, flag)
    if flag in needed and value in (None, ''):
      raise ValueError(f'--mode={mode}: expected --{flag} too')
    if value is not None and flag not in needed + allowed:
      takes = ', '.join(f'--{f}' for f in needed + allowed) or 'no files'
      raise ValueError(
        f'--{flag}={value}: --mode={mode} has no use for it, it takes {takes}; '
        'leave it out, or change --mode'
      )
  if mode == 'still' and asked.frames not in (None, 1):
    raise ValueError(f'--mode=still: --frames={asked.frames}: expected 1')
  return mode


def window(
  asked: Asked,
  mode: str,
  grid: geometry.Geometry,
  codec: Any,
  *,
  fps: float,
) -> conditioning_video.ConditioningVideo | None:
  """What the mode gives; None where that is nothing.

  Args:
    asked: flags; see `name`.
    mode: one of MODES.
    grid: of the window.
    codec: the autoencoder, for what it makes of a mask.
    fps: that videos are read at.

  Raises:
    ValueError: a file that cannot be read or is too short or of another size,
      or numbers that the window cannot hold.
  """
  if mode in ('text', 'still'):
    return None
  if mode == 'image':
    return _image(asked, grid)
  if mode == 'outpaint':
    return _outpaint(asked, grid, codec, fps=fps)
  video = inputs.read(asked.video, 'video', grid, fps=fps)
  if mode in ('inpaint', 'edit'):
    return _masked(asked, mode, video, grid, codec, fps=fps)
  return _joined(asked, mode, video, grid, codec, fps=fps)


def _image(asked: Asked, grid) -> conditioning_video.ConditioningVideo:
  at = _place(asked.image_at or 'first', grid.frames)
  if grid.frames == 1:
    raise ValueError(
      '--frames=1 with --image: nothing is left to be made; expected '
      f'{1 + grid.stride[0]} or more'
    )
  image_HWC = inputs.read_image(asked.image, 'image', grid)
  return conditioning_video.image(
    image_HWC, frames=grid.frames, at=at, hold=grid.stride[0]
  )


def _place(text: str, frames: int) -> int:
  places = {'first': 0, 'last': frames - 1}
  if text in places:
    return places[text]
  if not text.isdigit() or int(text) >= frames:
    raise ValueError(
      f'--image_at={text}: expected first, last or 0 to {frames - 1}'
    )
  return int(text)


def _outpaint(
  asked: Asked, grid, codec, *, fps: float
) -> conditioning_video.ConditioningVideo:
  height, width = inputs.video_size(asked.video, 'video')
  larger = (grid.height, grid.width) != (height, width)
  if height > grid.height or width > grid.width or not larger:
    raise ValueError(
      f'--video={asked.video} is {width}x{height} pixels: expected less than '
      f'the {grid.width}x{grid.height} of the picture around it; change --size'
    )
  video = inputs.read_sized(
    asked.video, 'video', height=height, width=width, fps=fps
  )
  _check_window(asked, video, grid, fps=fps)
  made = conditioning_video.outpaint(
    video[: grid.frames],
    height=grid.height,
    width=grid.width,
    cell=codec.stride[1:],
  )
  _check_some(codec.latent_cond_mask(made.cond_mask_FHW), asked.video, codec)
  return made


def _check_window(asked: Asked, video, grid, *, fps: float) -> None:
  """Refuses a video shorter than the window, all of which it fills."""
  inputs.check_length(
    asked.video,
    video,
    grid.frames,
    flag='video',
    by='frames',
    grid=grid,
    fps=fps,
  )


def _masked(
  asked: Asked, mode: str, video, grid, codec, *, fps: float
) -> conditioning_video.ConditioningVideo:
  frames, given = grid.frames, asked.given or 0
  _check_window(asked, video, grid, fps=fps)
  if not 0 <= given < frames:
    raise ValueError(f'--given={given}: expected 0 to {frames - 1}')
  new_HW = None
  if asked.mask:
    new_HW = inputs.read_mask(
      asked.mask, grid, size=inputs.video_size(asked.video, 'video')
    )
  if mode == 'edit':
    made = conditioning_video.edit(
      video, frames=frames, cond_frames=given, mask_HW=new_HW
    )
    if not (given or asked.mask):
      return made
  else:
    made = conditioning_video.inpaint(video[:frames], new_HW)
  _check_some(
    codec.latent_cond_mask(made.cond_mask_FHW), asked.mask or given, codec
  )
  return made


def _joined(
  asked: Asked, mode: str, video, grid, codec, *, fps: float
) -> conditioning_video.ConditioningVideo:
  """extend, extend_backward, loop and connect."""
  head, tail = default_given(mode, grid)
  if asked.given is not None:
    if asked.given < 1:
      raise ValueError(f'--given={asked.given}: expected 1 or more')
    head, tail = head and asked.given, tail and asked.given
  if head + tail >= grid.frames:
    raise ValueError(
      f'--given={max(head, tail)}, --frames={grid.frames}: nothing is left to '
      f'be made; expected --given of at most '
      f'{(grid.frames - 1) // (2 if head and tail else 1)}, or --frames of '
      f'{_next_frames(head + tail, grid)} or more'
    )
  other = video
  if mode == 'connect':
    other = inputs.read(asked.video2, 'video2', grid, fps=fps)
  for flag, frames, needed in (
    ('video', video, tail if mode == 'extend_backward' else head),
    ('video2' if mode == 'connect' else 'video', other, tail),
  ):
    inputs.check_length(
      getattr(asked, flag),
      frames,
      needed,
      flag=flag,
      by='given',
      grid=grid,
      fps=fps,
    )
  made = _join(mode, video, other, grid.frames, head, tail)
  step = grid.stride[0]
  if _is_lost(made, codec).any():
    # What a latent frame has only a part of would be made anew.
    head, tail = head and 1 + (head - 1) // step * step, tail // step * step
    if asked.given and asked.given < step and mode != 'extend':
      raise ValueError(
        f'--given={asked.given}: the autoencoder knows {step} frames at a time '
        f'or none; expected {step} or more'
      )
    logging.warning(
      '--given=%s: the autoencoder knows 1 frame at the start of a clip, then '
      '%s at a time or none; going on with %s',
      asked.given,
      step,
      ' and '.join(str(n) for n in (head, tail) if n),
    )
    made = _join(mode, video, other, grid.frames, head, tail)
  return made


def _join(
  mode: str, video, other, frames: int, head: int, tail: int
) -> conditioning_video.ConditioningVideo:
  if mode == 'extend':
    return conditioning_video.forward(video, frames=frames, cond_frames=head)
  if mode == 'extend_backward':
    return conditioning_video.backward(video, frames=frames, cond_frames=tail)
  if mode == 'connect':
    return conditioning_video.connect(
      video, other, frames=frames, cond_frames=(head, tail)
    )
  return conditioning_video.loop(video, frames=frames, cond_frames=(head, tail))


def _is_lost(made: conditioning_video.ConditioningVideo, codec) -> np.ndarray:
  """Frames that are given, of which no latent frame knows anything, (F,)."""
  known_F = made.cond_mask_FHW.any((1, 2))
  known_f = codec.latent_cond_mask(made.cond_mask_FHW).any((1, 2, 3))
  step = codec.stride[0]
  place_F = (np.arange(len(known_F)) + step - 1) // step
  return known_F & ~known_f[place_F]


def default_given(mode: str, grid: geometry.Geometry) -> tuple[int, int]:
  """Frames given at the window's start and at its end: whole latent frames,
  about half of the window."""
  latent, step = grid.latent[0], grid.stride[0]
  new = half = max(1, latent // 2)
  tail = max(1, (latent - new) // 2)
  ends = 1 + step * max(0, latent - new - tail - 1), step * tail
  return {
    'extend': (1 + step * ((latent - 1) // 2), 0),
    'extend_backward': (0, step * half),
    'connect': ends,
    'loop': ends,
  }[mode]


def _next_frames(frames: int, grid: geometry.Geometry) -> int:
  return 1 + -(-frames // grid.stride[0]) * grid.stride[0]


def _check_some(cond_mask_fhwc: np.ndarray, what: Any, codec: Any) -> None:
  if cond_mask_fhwc.any() and not cond_mask_fhwc.all():
    return
  time, height, width = codec.stride
  fault = 'nothing is left to be made'
  if not cond_mask_fhwc.any():
    fault = 'nothing of the video is kept'
  raise ValueError(
    f'{what}: {fault}: a latent cell is {time} frames of {height} x {width} '
    'pixels, kept if all of them are; change --mask, --given or --size'
  )
