"""Videos, images and masks that condition a video, at the model's size.

A source is a path, an array, a PIL image or a Video. Frames in memory are
treated like frames of a file: resized, cropped and, if their rate is known,
resampled.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from spacetime import SettingError
from spacetime.data import geometry as geometry_lib
from spacetime.media import (
  codecs,
  display,
  image_reader,
  resampling,
  video_reader,
)
from spacetime.pipeline.request import Source, describe, split_paths
from spacetime.pipeline.video import Video


def read_video(
  source: Source,
  name: str,
  geometry: geometry_lib.Geometry,
  *,
  fps: float,
  most: int | None = None,
) -> np.ndarray:
  """The frames of a video at the geometry's size, uint8 (F, H, W, 3).

  Args:
    source: a path, an array, a PIL image or a Video.
    name: name of the setting, for messages.
    geometry: sizes of the clip.
    fps: frames a second to resample to; an array has this rate already.
    most: number of frames after which reading stops; None reads all.

  Raises:
    SettingError: unreadable, or of other proportions.
  """
  height, width = video_size(source, name)
  share = _cropped_share(height, width, geometry)
  if share > display.CROP:
    own = f'{geometry.width}x{geometry.height}'
    nearest = nearest_size(height, width, geometry)
    raise SettingError(
      name,
      describe(source),
      f'the proportions of {geometry.width}x{geometry.height}, not '
      f'{width}x{height} pixels',
      hint='crop it'
      if nearest == own
      else f'crop it, or change `size`, such as `size`={nearest}',
    )
  _report_crop(source, name, height, width, geometry)
  return read_sized(
    source,
    name,
    height=geometry.height,
    width=geometry.width,
    fps=fps,
    most=most,
  )


def read_sized(
  source: Source,
  name: str,
  *,
  height: int,
  width: int,
  fps: float,
  most: int | None = None,
) -> np.ndarray:
  """The frames of a video of any proportions, uint8 (F, H, W, 3).

  Raises:
    SettingError: unreadable.
  """
  if not _is_path(source):
    frames_FHWC = _resampled(source, name, fps=fps)[:most]
    return np.stack(
      [
        display.fit(Image.fromarray(frame), height=height, width=width)
        for frame in frames_FHWC
      ]
    )
  info = _read(name, 'a video', video_reader.probe, source)
  for remark in info.remarks:
    logging.warning('%s=%s is %s', name, describe(source), remark)
  if resampling.repeats(info.fps, fps=fps):
    logging.warning(
      '%s=%s has %.3g frames a second and is read at %g, so that frames are '
      'repeated',
      name,
      describe(source),
      info.fps,
      fps,
    )
  sizes = dict(most=most, height=height, width=width, fps=fps)
  return _read(name, 'a video', video_reader.read_video, source, **sizes)


def video_size(source: Source, name: str) -> tuple[int, int]:
  """Height and width of a video, upright.

  Raises:
    SettingError: unreadable.
  """
  if not _is_path(source):
    return _frames(source, name).shape[1:3]
  return _read(name, 'a video', video_reader.video_size, source)


def read_image(
  source: Source, name: str, geometry: geometry_lib.Geometry
) -> np.ndarray:
  """An image cropped to the geometry's proportions, uint8 (H, W, 3).

  What is transparent is white.

  Raises:
    SettingError: unreadable.
  """
  image = _picture(source, name)
  _report_crop(source, name, image.height, image.width, geometry)
  return display.fit(image, height=geometry.height, width=geometry.width)


def read_original(source: Source, name: str) -> np.ndarray:
  """An image at its own size, uint8 (H, W, 3).

  Raises:
    SettingError: unreadable.
  """
  return np.asarray(_picture(source, name))


def read_references(
  sources: Source, geometry: geometry_lib.Geometry
) -> tuple[np.ndarray, ...]:
  """Reference images, each centred on a white picture of the clip's size.

  Args:
    sources: paths with commas between them, or a sequence of images.
    geometry: sizes of the clip.

  Raises:
    SettingError: unreadable, or none.
  """
  if isinstance(sources, str) and not os.path.exists(sources):
    paths = split_paths(sources)
    if not all(paths):
      raise SettingError(
        'reference_images', sources, 'image files with commas between them'
      )
    sources = paths
  elif not isinstance(sources, (list, tuple)):
    sources = [sources]
  if not sources:
    raise SettingError('reference_images', sources, 'one image or more')
  result = []
  for source in sources:
    image = Image.fromarray(read_original(source, 'reference_images'))
    size = geometry.width, geometry.height
    scale = min(a / b for a, b in zip(size, image.size, strict=True))
    inner = [max(1, int(side * scale)) for side in image.size]
    if image.size != tuple(inner):
      image = image.resize(inner, Image.Resampling.BILINEAR)
    canvas = Image.new('RGB', size, (255, 255, 255))
    corner = [(a - b) // 2 for a, b in zip(size, inner, strict=True)]
    canvas.paste(image, corner)
    result.append(np.asarray(canvas))
  return tuple(result)


def size_of_area(
  height: int, width: int, geometry: geometry_lib.Geometry
) -> tuple[int, int]:
  """(height, width) of these proportions and about the area of the geometry,
  as the published image-to-video pipelines compute them: rounded down to whole
  tokens."""
  area = geometry.height * geometry.width
  sides = (area * height / width) ** 0.5, (area * width / height) ** 0.5
  cells = [geometry.stride[axis] * geometry.patch[axis] for axis in (1, 2)]
  return tuple(
    max(1, round(side) // cell) * cell
    for side, cell in zip(sides, cells, strict=True)
  )


def nearest_size(
  height: int, width: int, geometry: geometry_lib.Geometry
) -> str:
  """A supported size of these proportions, as WIDTHxHEIGHT.

  Its area is about that of the geometry.
  """
  scale = (geometry.height * geometry.width / (height * width)) ** 0.5
  sides = [
    max(1, round(scale * size / (cell * patch))) * cell * patch
    for size, cell, patch in zip(
      (width, height),
      (geometry.stride[2], geometry.stride[1]),
      (geometry.patch[2], geometry.patch[1]),
      strict=True,
    )
  ]
  return f'{sides[0]}x{sides[1]}'


def read_mask(
  source: Source, geometry: geometry_lib.Geometry, *, size: tuple[int, int]
) -> np.ndarray:
  """Pixels to regenerate: those lighter than black, bool (H, W).

  Args:
    source: an image; an array may be bool.
    geometry: sizes of the clip.
    size: (height, width) of the video's file.

  Raises:
    SettingError: no image, one of another size, all black or all light.
  """
  mask = _mask_image(source)
  if mask.size not in (size[::-1], (geometry.width, geometry.height)):
    raise SettingError(
      'mask',
      describe(source),
      f'{size[1]}x{size[0]} pixels, the size of `video`, or '
      f'{geometry.width}x{geometry.height}, the size that is generated, not '
      f'{mask.width}x{mask.height}',
    )
  # A pixel of the clip is new if any new pixel falls on it.
  light = mask.point(lambda value: 255 * (value > 127))
  small = light.resize((geometry.width, geometry.height), Image.Resampling.BOX)
  new_HW = np.asarray(small) > 0
  if new_HW.all() or not new_HW.any():
    raise SettingError(
      'mask',
      describe(source),
      'light pixels to regenerate and black pixels that stay, not all '
      f'{"light" if new_HW.all() else "black"}',
    )
  return new_HW


def check_length(
  source: Source,
  frames_FHWC: np.ndarray,
  needed: int,
  *,
  name: str,
  setting: str,
  geometry: geometry_lib.Geometry,
  fps: float,
) -> None:
  """Refuses a video that is too short.

  Args:
    source: source of the video.
    frames_FHWC: frames of the video.
    needed: number of frames that are needed.
    name: name of the setting of the video.
    setting: the setting that needs the frames, 'frames' or 'cond_frames'.
    geometry: sizes of the clip.
    fps: frame rate at which the video was read.

  Raises:
    SettingError: the video is too short; the message has the largest number of
      frames that fits.
  """
  if len(frames_FHWC) < needed:
    nearest = len(frames_FHWC)
    if setting == 'frames':
      nearest = 1 + (nearest - 1) // geometry.stride[0] * geometry.stride[0]
    raise SettingError(
      name,
      describe(source),
      f'{needed} frames or more at {fps:g} a second, not {len(frames_FHWC)}',
      hint=f'the largest that fits is `{setting}`={nearest}',
    )


def _is_path(source: Source) -> bool:
  return isinstance(source, (str, os.PathLike))


def _read(name: str, kind: str, read: Callable, path, **sizes) -> Any:
  """Calls `read`; its ValueError becomes a SettingError."""
  try:
    return read(path, **sizes)
  except ValueError as e:
    # The text after the last semicolon is advice on folders of training clips.
    # A path may have one too.
    text = str(describe(path))
    message = str(e).replace(text, '\0')
    message = (message.rpartition(';')[0] or message).replace('\0', text)
    raise SettingError(
      name, describe(path), f'{kind} file', hint=message
    ) from e


def _frames(source: Source, name: str) -> np.ndarray:
  frames_FHWC = source.frames if isinstance(source, Video) else source
  frames_FHWC = np.asarray(frames_FHWC)
  if frames_FHWC.ndim == 3:
    frames_FHWC = frames_FHWC[None]
  try:
    codecs.check_frames(frames_FHWC)
  except ValueError as e:
    raise SettingError(
      name, describe(source), 'uint8 frames (F, H, W, 3)', hint=str(e)
    ) from e
  return frames_FHWC


def _resampled(source: Source, name: str, *, fps: float) -> np.ndarray:
  """Frames resampled to another rate, as a player would show them."""
  frames_FHWC = _frames(source, name)
  if not isinstance(source, Video) or source.fps == fps:
    return frames_FHWC
  timed = (
    (i / source.fps, 1 / source.fps, frame)
    for i, frame in enumerate(frames_FHWC)
  )
  return np.stack(list(resampling.resample(timed, fps=fps)))


def _picture(source: Source, name: str) -> Image.Image:
  if _is_path(source):
    image = _read(name, 'an image', image_reader.load, source)
    _report_pictures(source, name)
    return image
  if isinstance(source, Image.Image):
    return _converted(source, name, image_reader.to_rgb)
  frames_FHWC = _frames(source, name)
  if len(frames_FHWC) != 1:
    raise SettingError(
      name, describe(source), f'one image, not {len(frames_FHWC)} frames'
    )
  return Image.fromarray(frames_FHWC[0])


def _mask_image(source: Source) -> Image.Image:
  """The mask as a greyscale image, at its own size; transparent is black."""
  if isinstance(source, Image.Image):
    return _converted(source, 'mask', image_reader.to_mask)
  if not _is_path(source):
    mask_HW = np.asarray(source)
    if mask_HW.dtype == bool:
      mask_HW = np.uint8(255) * mask_HW
    channels = mask_HW.shape[2:]
    if mask_HW.dtype != np.uint8 or channels not in ((), (3,), (4,)):
      raise SettingError('mask', describe(source), 'bool or uint8 (H, W)')
    return _mask_image(Image.fromarray(mask_HW))
  mask = _read('mask', 'an image', image_reader.load_mask, source)
  _report_pictures(source, 'mask')
  return mask


def _report_pictures(source: Source, name: str) -> None:
  """Logs that of several pictures of a file, such as a GIF, one is taken."""
  count = image_reader.count_pictures(source)
  if count > 1:
    logging.warning(
      '%s=%s has %d pictures: the first is taken', name, describe(source), count
    )


def _converted(image: Image.Image, name: str, convert: Callable) -> Image.Image:
  try:
    return convert(image)
  except ValueError as e:
    raise SettingError(
      name, describe(image), 'an image of 8 or 16 bits', hint=str(e)
    ) from e


def _cropped_share(
  height: int, width: int, geometry: geometry_lib.Geometry
) -> float:
  return display.cropped_share(
    height, width, to_height=geometry.height, to_width=geometry.width
  )


def _report_crop(
  source: Source,
  name: str,
  height: int,
  width: int,
  geometry: geometry_lib.Geometry,
) -> None:
  """Logs how much of a picture is cut off, if any."""
  share = _cropped_share(height, width, geometry)
  if share > 0.005:
    logging.warning(
      '%s=%s is cropped from %dx%d to the proportions of %dx%d: %.0f %% of its '
      'area is cut off at the %s',
      name,
      describe(source),
      width,
      height,
      geometry.width,
      geometry.height,
      100 * share,
      'sides'
      if width * geometry.height > height * geometry.width
      else 'top and bottom',
    )
