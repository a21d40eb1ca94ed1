"""Conditioning modes: each turns a request into a conditioning video.

One model serves every mode. To add a mode, add an entry to MODES and the
function that it names.
"""

import dataclasses
import typing
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from spacetime import SettingError, SettingWarning
from spacetime.data import geometry as geometry_lib
from spacetime.diffusion import conditioning_video
from spacetime.diffusion.conditioning_video import ConditioningVideo
from spacetime.pipeline import inputs
from spacetime.pipeline.request import Request, describe

if typing.TYPE_CHECKING:  # its import would slow the help down
  from spacetime.models.transformer.dit import DiTConfig

# Settings that only some modes use.
SETTINGS = (
  *('image', 'image_at', 'last_image', 'reference_images'),
  *('video', 'video2', 'mask', 'strength', 'cond_frames'),
)


@dataclasses.dataclass(frozen=True)
class Target:
  """The clip that a mode conditions.

  Attributes:
    mode: name of the mode.
    geometry: sizes of the clip.
    autoencoder: autoencoder of the latents; it maps known pixels to known
      latent values.
    fps: frame rate at which videos are read, in frames per second.
    sees: how the model sees known pixels, see DiTConfig.sees.
  """

  mode: str
  geometry: geometry_lib.Geometry
  autoencoder: Any
  fps: float
  sees: str = 'frames'


@dataclasses.dataclass(frozen=True)
class Mode:
  """A conditioning mode.

  Attributes:
    help: description for `--help`, a phrase.
    condition: (request, target) -> conditioning video, or None.
    needs: required settings.
    takes: optional settings.
    frames: default length of the clip: 'trained', 'longest' (of training, for
      modes that need time for a transition) or 'one'.
    extendable: whether its clip can start a long video.
  """

  help: str
  condition: Callable[[Request, Target], ConditioningVideo | None]
  needs: tuple[str, ...] = ()
  takes: tuple[str, ...] = ()
  frames: str = 'trained'
  extendable: bool = False


def choose(request: Request) -> str:
  """The name of the request's mode.

  Raises:
    SettingError: no such mode, or settings that it lacks or does not use.
  """
  name = request.mode
  if name is None:
    images = (request.image, request.last_image)
    name = 'text' if all(image is None for image in images) else 'image'
  if name not in MODES:
    raise SettingError('mode', name, f'one of {", ".join(MODES)}')
  mode = MODES[name]
  takes = mode.needs + mode.takes
  if request.seconds is not None and 'cond_frames' not in takes:
    takes += ('cond_frames',)  # of each later chunk
  for setting in SETTINGS:
    value = getattr(request, setting)
    empty = value is None or isinstance(value, str) and not value
    if setting in mode.needs and empty:
      raise SettingError('mode', name, f'`{setting}` too')
    if setting == 'reference_images':
      continue  # see check_model
    if value is not None and setting not in takes:
      names = ', '.join(f'`{name}`' for name in takes) or 'no files'
      raise SettingError(
        setting,
        describe(value),
        f'none, since `mode`={name} takes {names}',
        hint='leave it out, or change `mode`',
      )
  if mode.frames == 'one' and request.frames not in (None, 1):
    raise SettingError('frames', request.frames, f'1 with `mode`={name}')
  return name


def condition(request: Request, target: Target) -> ConditioningVideo | None:
  """The conditioning video of a request; None if no pixels are known.

  Raises:
    SettingError: a file that cannot be read, is too short or of another size,
      or numbers that the clip cannot hold.
  """
  return MODES[target.mode].condition(request, target)


def default_cond_frames(
  mode: str, geometry: geometry_lib.Geometry
) -> tuple[int, int]:
  """Default conditioning frames at the start and at the end of the clip.

  They are complete latent frames, about half of the clip.
  """
  latent, step = geometry.latent[0], geometry.stride[0]
  new = half = max(1, latent // 2)
  tail = max(1, (latent - new) // 2)
  ends = 1 + step * max(0, latent - new - tail - 1), step * tail
  return {
    'extend': (1 + step * ((latent - 1) // 2), 0),
    'extend_backward': (0, step * half),
    'connect': ends,
    'loop': ends,
  }[mode]


# -- conditioning videos of the modes ------------------------------------------


def _unconditioned(request: Request, target: Target) -> None:
  del request, target


def _image(request: Request, target: Target) -> ConditioningVideo:
  geometry = target.geometry
  index = _frame_index(request.image_at, geometry.frames)
  if geometry.frames == 1:
    raise SettingError(
      'frames',
      1,
      f'{1 + geometry.stride[0]} or more with `image`, so that there are '
      'frames to generate',
    )
  images_HWC = {index: inputs.read_image(request.image, 'image', geometry)}
  if request.last_image is not None:
    last = geometry.frames - 1
    step = geometry.stride[0] if target.sees == 'frames' else 1
    if index + step > last:
      raise SettingError(
        'image_at',
        request.image_at,
        f'at most {max(0, last - step)} of {geometry.frames} frames with '
        '`last_image`, which is the last',
      )
    images_HWC[last] = inputs.read_image(
      request.last_image, 'last_image', geometry
    )
  return conditioning_video.images(
    images_HWC,
    frames=geometry.frames,
    hold=geometry.stride[0] if target.sees == 'frames' else 1,
  )


def _control(request: Request, target: Target) -> ConditioningVideo:
  frames_FHWC = _read_clip(request, target)
  return conditioning_video.control(frames_FHWC, frames=target.geometry.frames)


def _frame_index(value: str | int | None, frames: int) -> int:
  text = 'first' if value is None else str(value)
  index = {'first': 0, 'last': frames - 1}.get(text)
  if index is not None:
    return index
  if not text.isdecimal() or int(text) >= frames:
    raise SettingError('image_at', value, f'first, last or 0 to {frames - 1}')
  return int(text)


def _outpaint(request: Request, target: Target) -> ConditioningVideo:
  geometry, video = target.geometry, request.video
  height, width = inputs.video_size(video, 'video')
  larger = (geometry.height, geometry.width) != (height, width)
  if height > geometry.height or width > geometry.width or not larger:
    raise SettingError(
      'video',
      describe(video),
      f'less than the {geometry.width}x{geometry.height} pixels of the picture '
      f'around it, not {width}x{height}',
      hint='change `size`',
    )
  frames_FHWC = inputs.read_sized(
    video,
    'video',
    height=height,
    width=width,
    fps=target.fps,
    most=geometry.frames + 1,
  )
  result = conditioning_video.outpaint(
    _clip(request, frames_FHWC, target),
    height=geometry.height,
    width=geometry.width,
    cell=target.autoencoder.stride[1:],
  )
  _check_partly_known(result, 'video', video, target)
  return result


def _inpaint(request: Request, target: Target) -> ConditioningVideo:
  frames_FHWC = _read_clip(request, target)
  new_HW = _read_mask(request, target)
  result = conditioning_video.inpaint(frames_FHWC, new_HW)
  _check_partly_known(result, 'mask', request.mask, target)
  return result


def _edit(request: Request, target: Target) -> ConditioningVideo:
  frames, cond_frames = target.geometry.frames, request.cond_frames or 0
  if cond_frames:  # what follows the frames that stay is part of the result
    frames_FHWC = _read_video(request, target)
    _check_clip(request, frames_FHWC, target)
  else:
    frames_FHWC = _read_clip(request, target)
  if not 0 <= cond_frames < frames:
    raise SettingError('cond_frames', cond_frames, f'0 to {frames - 1}')
  new_HW = None if request.mask is None else _read_mask(request, target)
  result = conditioning_video.edit(
    frames_FHWC, frames=frames, cond_frames=cond_frames, mask_HW=new_HW
  )
  if new_HW is not None:
    _check_partly_known(result, 'mask', request.mask, target)
  elif cond_frames:
    _check_partly_known(result, 'cond_frames', cond_frames, target)
  return result


def _joined(request: Request, target: Target) -> ConditioningVideo:
  """The conditioning video of extend, extend_backward, loop and connect."""
  mode, frames = target.mode, target.geometry.frames
  frames_FHWC = _read_video(request, target)
  head, tail = _cond_frames(request, target)
  other_FHWC = frames_FHWC
  if mode == 'connect':
    other_FHWC = inputs.read_video(
      request.video2, 'video2', target.geometry, fps=target.fps
    )
  for name, clip_FHWC, needed in (
    ('video', frames_FHWC, tail if mode == 'extend_backward' else head),
    ('video2' if mode == 'connect' else 'video', other_FHWC, tail),
  ):
    inputs.check_length(
      getattr(request, name),
      clip_FHWC,
      needed,
      name=name,
      setting='cond_frames',
      geometry=target.geometry,
      fps=target.fps,
    )
  result = _join(mode, frames_FHWC, other_FHWC, frames, head, tail)
  if _is_lost(result, target.autoencoder).any():
    head, tail = _latent_frames(request, target, head, tail)
    result = _join(mode, frames_FHWC, other_FHWC, frames, head, tail)
  return result


def _join(
  mode: str, frames_FHWC, other_FHWC, frames: int, head: int, tail: int
) -> ConditioningVideo:
  if mode == 'extend':
    return conditioning_video.forward(
      frames_FHWC, frames=frames, cond_frames=head
    )
  if mode == 'extend_backward':
    return conditioning_video.backward(
      frames_FHWC, frames=frames, cond_frames=tail
    )
  ends = (head, tail)
  if mode == 'connect':
    return conditioning_video.connect(
      frames_FHWC, other_FHWC, frames=frames, cond_frames=ends
    )
  return conditioning_video.loop(frames_FHWC, frames=frames, cond_frames=ends)


MODES = {
  'text': Mode('a video of the prompt alone', _unconditioned, extendable=True),
  'still': Mode('one image of the prompt', _unconditioned, frames='one'),
  'image': Mode(
    '`image` becomes a frame of the video, `last_image` the last',
    _image,
    ('image',),
    ('image_at', 'last_image'),
    extendable=True,
  ),
  'extend': Mode(
    'continues `video`', _joined, ('video',), ('cond_frames',), extendable=True
  ),
  'extend_backward': Mode(
    'generates the frames before `video`',
    _joined,
    ('video',),
    ('cond_frames',),
  ),
  'loop': Mode(
    'leads the end of `video` back to its start',
    _joined,
    ('video',),
    ('cond_frames',),
    frames='longest',
  ),
  'connect': Mode(
    'leads `video` to `video2`',
    _joined,
    ('video', 'video2'),
    ('cond_frames',),
    frames='longest',
  ),
  'inpaint': Mode(
    'regenerates the light part of `mask`', _inpaint, ('video', 'mask')
  ),
  'outpaint': Mode(
    'generates a larger picture around `video`', _outpaint, ('video',)
  ),
  'edit': Mode(
    'changes `video` to the prompt, by `strength`',
    _edit,
    ('video', 'strength'),
    ('mask', 'cond_frames'),
  ),
  'control': Mode(
    'follows the outlines, depth or poses of `video` (VACE models)',
    _control,
    ('video',),
  ),
}
# Modes of models that do not see known pixels as frames of the latents.
MODES_OF = {
  'channels': ('image',),
  'control': tuple(name for name in MODES if name != 'edit'),
  'frames': tuple(name for name in MODES if name != 'control'),
}
MODELS = {
  'channels': 'an image-to-video model, which continues `image`',
  'control': 'a model with control blocks (VACE)',
  'frames': 'a model without control blocks (VACE has them)',
}


def check_model(name: str, request: Request, model: 'DiTConfig') -> None:
  """Refuses a mode or an image that the model cannot use.

  Raises:
    SettingError: it names the mode or the image.
  """
  sees = model.sees
  if name not in MODES_OF[sees]:
    if request.mode is None:
      raise SettingError('image', None, f'an image for {MODELS[sees]}')
    names = ', '.join(MODES_OF[sees])
    raise SettingError('mode', name, f'one of {names} with {MODELS[sees]}')
  if request.reference_images is not None and sees != 'control':
    raise SettingError(
      'reference_images',
      describe(request.reference_images),
      f'none with {MODELS[sees]}',
    )
  if request.control_scale is not None and sees != 'control':
    raise SettingError(
      'control_scale', request.control_scale, f'none with {MODELS[sees]}'
    )
  if sees == 'frames':
    return
  if request.context_noise is not None:
    raise SettingError(
      'context_noise',
      request.context_noise,
      f'none with {MODELS[sees]}, which sees known frames as they are',
    )
  if sees == 'control':
    return
  if request.image_at not in (None, 'first', '0', 0):
    raise SettingError(
      'image_at', request.image_at, f"'first' with {MODELS[sees]}"
    )
  if request.cond_frames not in (None, 1):
    raise SettingError(
      'cond_frames', request.cond_frames, f'1 with {MODELS[sees]}'
    )
  ends = model.image_tokens > 0
  if ends and request.seconds is not None:
    raise SettingError(
      'seconds',
      request.seconds,
      'none with a model that leads from one image to another: set `frames`',
    )
  if ends and request.last_image is None:
    raise SettingError(
      'last_image',
      None,
      'the last frame too, with a model that leads from one image to another',
    )
  if model.image_width and not ends and request.last_image is not None:
    raise SettingError(
      'last_image',
      describe(request.last_image),
      f'none with {MODELS[sees]} alone',
    )


def table() -> str:
  """The modes, a line each, for the help of commands."""
  return '\n'.join(f'  {name:16}{m.help}' for name, m in MODES.items())


# -- reading and checking inputs -----------------------------------------------


def _read_video(
  request: Request, target: Target, *, most: int | None = None
) -> np.ndarray:
  return inputs.read_video(
    request.video, 'video', target.geometry, fps=target.fps, most=most
  )


def _read_clip(request: Request, target: Target) -> np.ndarray:
  """The first frames of the video, as many as the clip has."""
  most = target.geometry.frames + 1
  return _clip(request, _read_video(request, target, most=most), target)


def _clip(request: Request, frames_FHWC, target: Target) -> np.ndarray:
  """The first frames of a video, as many as the clip has.

  Warns of a longer video, and refuses a shorter one.
  """
  _check_clip(request, frames_FHWC, target)
  frames = target.geometry.frames
  if len(frames_FHWC) > frames:
    warnings.warn(
      SettingWarning(
        'video',
        describe(request.video),
        f'longer than the clip: all after its first {frames} frames, '
        f'{frames / target.fps:g} seconds, is left out; `frames` sets the '
        'length of the clip',
      ),
      stacklevel=2,
    )
  return frames_FHWC[:frames]


def _read_mask(request: Request, target: Target) -> np.ndarray:
  size = inputs.video_size(request.video, 'video')
  return inputs.read_mask(request.mask, target.geometry, size=size)


def _check_clip(request: Request, frames_FHWC, target: Target) -> None:
  """Refuses a video that is shorter than the clip."""
  inputs.check_length(
    request.video,
    frames_FHWC,
    target.geometry.frames,
    name='video',
    setting='frames',
    geometry=target.geometry,
    fps=target.fps,
  )


def _cond_frames(request: Request, target: Target) -> tuple[int, int]:
  """Conditioning frames at the start and at the end of the clip."""
  geometry, frames = target.geometry, request.cond_frames
  head, tail = default_cond_frames(target.mode, geometry)
  if frames is not None:
    if frames < 1:
      raise SettingError('cond_frames', frames, '1 or more')
    head, tail = head and frames, tail and frames
  if head + tail >= geometry.frames:
    most = (geometry.frames - 1) // (2 if head and tail else 1)
    step = geometry.stride[0]
    least = 1 + -(-(head + tail) // step) * step
    raise SettingError(
      'cond_frames',
      max(head, tail),
      f'at most {most} of the {geometry.frames} frames, so that there are '
      f'frames to generate, or `frames` of {least} or more',
    )
  return head, tail


def _latent_frames(
  request: Request, target: Target, head: int, tail: int
) -> tuple[int, int]:
  """Rounds conditioning frames down to complete latent frames.

  Frames of an incomplete latent frame would be generated again.
  """
  step, frames = target.geometry.stride[0], request.cond_frames
  head, tail = head and 1 + (head - 1) // step * step, tail // step * step
  if frames and frames < step and target.mode != 'extend':
    raise SettingError(
      'cond_frames',
      frames,
      f'{step} or more, since the autoencoder encodes {step} frames at a time',
    )
  logging.warning(
    'cond_frames=%s: the autoencoder encodes 1 frame at the start of a clip, '
    'then %s at a time; continuing with %s',
    frames,
    step,
    ' and '.join(str(n) for n in (head, tail) if n),
  )
  return head, tail


def _is_lost(video: ConditioningVideo, autoencoder) -> np.ndarray:
  """Conditioning frames (F,) that determine no value of any latent frame."""
  known_F = video.cond_mask_FHW.any((1, 2))
  known_f = autoencoder.latent_cond_mask(video.cond_mask_FHW).any((1, 2, 3))
  step = autoencoder.stride[0]
  latent_F = (np.arange(len(known_F)) + step - 1) // step
  return known_F & ~known_f[latent_F]


def _check_partly_known(
  video: ConditioningVideo, name: str, value, target: Target
) -> None:
  """Refuses conditioning videos with no or only known latent values."""
  cond_mask_fhwc = target.autoencoder.latent_cond_mask(video.cond_mask_FHW)
  if cond_mask_fhwc.any() and not cond_mask_fhwc.all():
    return
  time, height, width = target.autoencoder.stride
  amount = 'all of it stays' if cond_mask_fhwc.any() else 'none of it stays'
  raise SettingError(
    name,
    describe(value),
    f'a part of the video that stays: {amount}, in latent cells of {time} '
    f'frames of {height} x {width} pixels',
    hint='change `mask`, `cond_frames` or `size`',
  )
