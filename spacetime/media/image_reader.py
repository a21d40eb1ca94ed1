"""Image files -> 8-bit RGB: upright, of any depth, without transparency."""

import io
import os
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms, ImageOps

from spacetime.media import color, display, files, video_file

Path = str | os.PathLike

# Pillow reads more, some of it by other programs (EPS).
FORMATS = (
  *('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'AVIF', 'JPEG2000'),
)
# Tags of TIFF.
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
SIGNED, WHITE_IS_ZERO = 2, 0
HEADER = 2**16  # bytes of an AVIF that hold its properties
# A gamma so near to that of sRGB is sRGB, as libpng has it.
SAME_GAMMA = 0.05


def read_image(
  path: Path, *, height: int | None = None, width: int | None = None
) -> np.ndarray:
  """Reads an image, upright; the short side is resized, the centre cropped.

  Pixels are square, whatever resolution the file states for printing.

  Args:
    path: a file of one of FORMATS; of several pictures the first.
    height: pixel rows; None keeps those of the file.
    width: pixel columns; None keeps those of the file.

  Returns:
    uint8 (H, W, 3); what is transparent is white.

  Raises:
    ValueError: no such file, not an image, or one whose values have no known
      range.
  """
  sizes = (height, width)
  if any(size is not None and size <= 0 for size in sizes):
    raise ValueError(f'height={height}, width={width}: expected all above 0')
  image = load(path)
  return display.fit(
    image, height=height or image.height, width=width or image.width
  )


def load(path: Path) -> Image.Image:
  """A file as an upright image of mode RGB; see to_rgb.

  Raises:
    ValueError: see read_image.
  """
  return _load(path, to_rgb)


def load_mask(path: Path) -> Image.Image:
  """A file as an upright image of mode L; see to_mask.

  Raises:
    ValueError: see read_image.
  """
  return _load(path, to_mask)


def count_pictures(path: Path) -> int:
  """The number of pictures in an image file, such as the frames of a GIF."""
  with Image.open(files.local_copy(path), formats=FORMATS) as image:
    return getattr(image, 'n_frames', 1)


def to_rgb(image: Image.Image, *, bits: int | None = None) -> Image.Image:
  """Converts an image of any mode to RGB.

  Colours of an ICC profile become sRGB, 16-bit values are scaled to 8 bits,
  floats are 0 to 1, and what is transparent is laid over white.

  Args:
    image: any image of Pillow.
    bits: bits of integers above 8; the default is 16 of a mode such as I;16.

  Raises:
    ValueError: integers or floats of no known range.
  """
  return _flat(_to_srgb(image), ground=255, bits=bits or _bits(image))


def to_mask(image: Image.Image, *, bits: int | None = None) -> Image.Image:
  """Converts an image of any mode to L; what is transparent is black.

  Raises:
    ValueError: see to_rgb.
  """
  return _flat(image, ground=0, bits=bits or _bits(image)).convert('L')


# -- within --------------------------------------------------------------------


def _open(path: Path) -> Image.Image:
  """Opens and decodes an image; its size is checked in between."""
  path = files.local_copy(path)
  files.check_file(path)
  try:
    with warnings.catch_warnings():
      # Sizes are checked below.
      warnings.simplefilter('ignore', Image.DecompressionBombWarning)
      image = Image.open(path, formats=FORMATS)
  except Exception as e:  # of damaged files Pillow's readers raise anything
    raise _unreadable(path, e) from e
  try:
    video_file.check_pixels(path, *image.size)
    if _color_codes(path, image)[1] in (color.PQ, color.HLG):
      raise ValueError(
        f'{path} is an HDR image (PQ or HLG); convert it to sRGB'
      )
    _scale_clear_color(image)
    _decode(path, image)
  except ValueError:
    image.close()
    raise
  return image


def _decode(path: Path, image: Image.Image) -> None:
  try:
    image.load()
  except Exception as e:
    raise _unreadable(path, e) from e


def _scale_clear_color(image: Image.Image) -> None:
  """Scales the transparent colour of RGB of 16 bits, as Pillow its pixels."""
  clear = image.info.get('transparency')
  deep = any('16' in str(tile[3]) for tile in image.tile)
  if deep and isinstance(clear, tuple):
    image.info['transparency'] = tuple(level >> 8 for level in clear)


def _unreadable(path: Path, error: Exception) -> ValueError:
  return ValueError(f'{path} cannot be read as an image ({error})')


def _load(path: Path, convert: Callable) -> Image.Image:
  with _open(path) as image:
    try:
      result = convert(ImageOps.exif_transpose(image), bits=_bits(image))
      if _is_inverted(image):
        result = ImageOps.invert(result)
      if convert is not to_rgb:
        return result
      return _from_primaries(path, image, _from_gamma(image, result))
    except Exception as e:  # damaged metadata, or values of no known range
      raise _unreadable(path, e) from e


def _flat(image: Image.Image, *, ground: int, bits: int | None) -> Image.Image:
  """RGB of 8 bits, transparent parts over a gray level."""
  if image.mode.startswith('I') or image.mode == 'F':
    gray_HW, opaque_HW = _gray(image, bits)
    gray_HW = np.where(opaque_HW, gray_HW, np.uint8(ground))
    return Image.fromarray(gray_HW).convert('RGB')
  if not image.has_transparency_data:
    return image.convert('RGB')
  return Image.fromarray(color.over(np.asarray(_rgba(image)), ground))


def _to_srgb(image: Image.Image) -> Image.Image:
  """Converts the colours of an ICC profile; without one, they are sRGB."""
  profile = image.info.get('icc_profile')
  if not profile or image.mode not in ('RGB', 'RGBA', 'CMYK', 'L'):
    return image
  try:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if 'sRGB' in ImageCms.getProfileDescription(source):
      return image
    return ImageCms.profileToProfile(
      image,
      source,
      ImageCms.createProfile('sRGB'),
      outputMode='RGBA' if image.mode == 'RGBA' else 'RGB',
    )
  except (ImageCms.PyCMSError, OSError, ValueError):
    return image  # a damaged profile, which viewers ignore too


def _is_inverted(image: Image.Image) -> bool:
  """Whether white is 0, which Pillow turns round in gray of 8 bits alone."""
  tags = getattr(image, 'tag_v2', None) or {}
  deep = image.mode.startswith('I') or image.mode == 'F'
  return deep and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO


def _from_gamma(image: Image.Image, rgb: Image.Image) -> Image.Image:
  """Applies the gamma that a PNG states in place of sRGB, as browsers do."""
  gamma = image.info.get('gamma')
  named = 'srgb' in image.info or image.info.get('icc_profile')
  if not gamma or named or abs(gamma * 2.2 - 1) <= SAME_GAMMA:
    return rgb
  light = (np.arange(256) / 255) ** (1 / gamma)
  levels = np.round(255 * color.to_srgb(light)).astype(int)
  return rgb.point(levels.tolist() * 3)


def _from_primaries(
  path: Path, image: Image.Image, rgb: Image.Image
) -> Image.Image:
  """Converts wide primaries that a file states by their code to BT.709's."""
  primaries = _color_codes(files.local_copy(path), image)[0]
  if primaries not in color.TO_BT709 or image.info.get('icc_profile'):
    return rgb
  signal_HWC = np.asarray(rgb).astype(np.uint16) * 257
  return Image.fromarray(
    color.to_bt709(signal_HWC, primaries=primaries, is_image=True)
  )


def _color_codes(path: Path, image: Image.Image) -> tuple[int, int]:
  """Codes of primaries and transfer function, which Pillow does not read; 2 is
  unspecified. Source: ITU-T H.273, tables 2 and 3."""
  with open(path, 'rb') as file:
    if image.format == 'AVIF':
      data = file.read(HEADER).partition(b'colrnclx')[2]
      if len(data) >= 4:
        return int.from_bytes(data[:2], 'big'), int.from_bytes(data[2:4], 'big')
    if image.format == 'PNG':
      file.seek(8)  # the signature
      while len(head := file.read(8)) == 8 and head[4:] != b'IDAT':
        size = int.from_bytes(head[:4], 'big')
        if head[4:] == b'cICP' and len(data := file.read(4)) == 4:
          return data[0], data[1]
        file.seek(size + 4, 1)
  return 2, 2


def _rgba(image: Image.Image) -> Image.Image:
  # Pillow converts premultiplied alpha and palettes in two steps only.
  steps = {'La': 'LA', 'RGBa': 'RGBA', 'PA': 'RGBA'}
  if image.mode in steps:
    image = image.convert(steps[image.mode])
  return image.convert('RGBA')


def _gray(
  image: Image.Image, bits: int | None
) -> tuple[np.ndarray, np.ndarray]:
  """Gray levels of a deep image, uint8 (H, W), and which pixels are opaque."""
  values_HW = np.asarray(image)
  low, high = values_HW.min(), values_HW.max()
  if image.mode == 'F':
    top, kind = 1.0, 'floats'
  elif bits is None:
    raise ValueError('its integers have 32 bits or a sign; expected 16 bits')
  else:
    top, kind = float(2**bits - 1), 'integers'
  if not (0 <= low and high <= top):
    raise ValueError(
      f'its {kind} are from {low} to {high}; expected 0 to {top:g}'
    )
  opaque_HW = np.ones(values_HW.shape, bool)
  clear = image.info.get('transparency')
  if clear is not None:
    opaque_HW = values_HW != clear
  scaled_HW = values_HW.astype(np.float64) * (255 / top)
  return np.round(scaled_HW).astype(np.uint8), opaque_HW


def _bits(image: Image.Image) -> int | None:
  """Bits of a gray level above 8 bits; None if its range is not known."""
  tags = getattr(image, 'tag_v2', None)
  if tags:
    (bits, *_), (kind, *_) = (
      value if isinstance(value, tuple) else (value,)
      for value in (tags.get(BITS_PER_SAMPLE, 1), tags.get(SAMPLE_FORMAT, 1))
    )
    return bits if bits <= 16 and kind != SIGNED else None
  return 16 if image.mode.startswith('I;') or image.format == 'PPM' else None
