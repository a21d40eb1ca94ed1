"""Tests of reading images; their kinds are in tests/corpus/media.py."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from spacetime.media import image_reader


def test_resizes_the_short_side_and_cuts_the_centre(tmp_path):
  image_HWC = np.zeros((20, 30, 3), np.uint8)
  image_HWC[:, 5:25] = (10, 200, 30)
  path = tmp_path / 'a.png'
  Image.fromarray(image_HWC).save(path)
  np.testing.assert_array_equal(image_reader.read_image(path), image_HWC)
  read_HWC = image_reader.read_image(path, height=20, width=20)
  np.testing.assert_array_equal(read_HWC, image_HWC[:, 5:25])
  assert image_reader.read_image(path, height=8, width=9).shape == (8, 9, 3)


def test_refusals(tmp_path):
  with pytest.raises(ValueError, match='absent.png: no such file'):
    image_reader.read_image(tmp_path / 'absent.png')
  with pytest.raises(ValueError, match='height=0, .*: expected all above 0'):
    image_reader.read_image(tmp_path / 'absent.png', height=0, width=2)


def test_damaged_metadata(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  path = tmp_path / 'a.webp'
  Image.new('RGB', (4, 2)).save(path, exif=exif)
  data = path.read_bytes()
  assert data.count(b'MM\0*') == 1
  path.write_bytes(data.replace(b'MM\0*', b'MM\0\0'))
  with pytest.raises(ValueError, match='a.webp cannot be read as an image'):
    image_reader.read_image(path)


def test_transparent_parts_have_a_plain_ground():
  image = Image.new('RGBA', (4, 2), (9, 9, 9, 0))
  assert (np.asarray(image_reader.to_rgb(image)) == 255).all()
  assert (np.asarray(image_reader.to_mask(image)) == 0).all()


# Adobe RGB (1998), adapted to D50.
PRIMARIES = np.array(
  [
    [0.60974, 0.31111, 0.01947],
    [0.20528, 0.62567, 0.06087],
    [0.14919, 0.06322, 0.74457],
  ]
)
XYZ_TO_SRGB = np.array(
  [
    [3.13386, -1.61687, -0.49061],
    [-0.97877, 1.91614, 0.03345],
    [0.07194, -0.22899, 1.40524],
  ]
)  # of D50


def profile():
  """An ICC profile of three primaries and a gamma of 2.2."""

  def numbers(values):
    return b''.join(struct.pack('>i', round(65536 * v)) for v in values)

  def xyz(values):
    return b'XYZ ' + bytes(4) + numbers(values)

  white = (0.9642, 1, 0.8249)
  curve = b'curv' + bytes(4) + struct.pack('>IHH', 1, round(256 * 2.2), 0)
  name = b'desc' + bytes(4) + struct.pack('>I', 5) + b'wide\0' + bytes(79)
  tags = [(b'desc', name), (b'cprt', b'text' + bytes(8)), (b'wtpt', xyz(white))]
  for letter, values in zip('rgb', PRIMARIES, strict=True):
    tags.append((f'{letter}XYZ'.encode(), xyz(values)))
    tags.append((f'{letter}TRC'.encode(), curve))
  at = 132 + 12 * len(tags)
  table, body = struct.pack('>I', len(tags)), b''
  for tag, data in tags:
    table += tag + struct.pack('>II', at + len(body), len(data))
    body += data + bytes(-len(data) % 4)
  head = struct.pack('>II', at + len(body), 0) + b'\x02\x40\0\0mntrRGB XYZ '
  head = head.ljust(36, b'\0') + b'acsp'
  head = head.ljust(68, b'\0') + numbers(white)
  return head.ljust(128, b'\0') + table + body


@pytest.mark.parametrize('mode', ['RGB', 'RGBA'])
def test_colours_of_a_profile_become_srgb(tmp_path, mode):
  levels = np.array((180, 120, 90))
  light = XYZ_TO_SRGB @ (PRIMARIES.T @ (levels / 255) ** 2.2)
  want = 255 * (1.055 * light ** (1 / 2.4) - 0.055)
  image = Image.new('RGB', (8, 8), tuple(levels.tolist())).convert(mode)
  path = tmp_path / 'a.png'
  image.save(path, icc_profile=profile())
  read_HWC = image_reader.read_image(path).astype(int)
  assert np.abs(read_HWC - want).max() <= 2
  assert np.abs(read_HWC - levels).max() > 10
  # A damaged profile is ignored.
  image.save(path, icc_profile=profile()[:200])
  assert (image_reader.read_image(path) == levels).all()


def chunked(path, gray, *chunks):
  """A PNG of one gray level with chunks of colour in its header."""
  stream = io.BytesIO()
  Image.new('RGB', (8, 8), (gray,) * 3).save(stream, 'PNG')
  data = stream.getvalue()
  extra = b''.join(
    struct.pack('>I', len(body))
    + kind
    + body
    + struct.pack('>I', zlib.crc32(kind + body))
    for kind, body in chunks
  )
  path.write_bytes(data[:33] + extra + data[33:])  # after IHDR
  return path


@pytest.mark.parametrize(
  'chunks, level',
  [
    ([(b'gAMA', struct.pack('>I', 100_000))], 188),  # linear light
    ([(b'gAMA', struct.pack('>I', 55_556))], 104),  # 1 / 1.8, of old Macs
    ([(b'gAMA', struct.pack('>I', 45_455))], 128),
    ([(b'sRGB', b'\0'), (b'gAMA', struct.pack('>I', 100_000))], 128),
    ([(b'cICP', bytes([1, 13, 0, 1]))], 128),
  ],
)
def test_the_gamma_of_a_png(tmp_path, chunks, level):
  path = chunked(tmp_path / 'a.png', 128, *chunks)
  if level == 104:
    level = round(255 * (1.055 * (128 / 255) ** (1.8 / 2.4) - 0.055))
  assert abs(int(image_reader.read_image(path)[0, 0, 0]) - level) <= 1
  # Values of a mask are no light.
  assert image_reader.load_mask(path).getpixel((0, 0)) == 128


@pytest.mark.parametrize('transfer', [16, 18])
def test_an_hdr_png_is_refused(tmp_path, transfer):
  path = chunked(tmp_path / 'a.png', 128, (b'cICP', bytes([9, transfer, 0, 1])))
  with pytest.raises(ValueError, match='a.png is an HDR image'):
    image_reader.read_image(path)


def test_wide_primaries_of_a_png_are_converted(tmp_path):
  path = chunked(tmp_path / 'a.png', 128, (b'cICP', bytes([12, 13, 0, 1])))
  assert (image_reader.read_image(path) == 128).all()  # gray stays gray
  Image.new('RGB', (8, 8), (200, 60, 60)).save(tmp_path / 'b.png')
  data = (tmp_path / 'b.png').read_bytes()
  start = path.read_bytes()
  chunk = start[33 : start.index(b'IDAT') - 4]
  (tmp_path / 'b.png').write_bytes(data[:33] + chunk + data[33:])
  red, green, blue = image_reader.read_image(tmp_path / 'b.png')[0, 0].astype(
    int
  )
  # By hand: light 0.5776, 0.0452, 0.0452; 0.6974, 0.0228, 0.0347 in BT.709.
  assert max(abs(red - 217), abs(green - 41), abs(blue - 52)) <= 1


@pytest.mark.parametrize('codes', [(12, 13), (9, 16), (9, 18)])
def test_color_codes_of_an_avif(tmp_path, codes):
  path = tmp_path / 'a.avif'
  Image.new('RGB', (16, 16), (200, 60, 60)).save(path, quality=100)
  plain = image_reader.read_image(path)[8, 8].astype(int)
  data = path.read_bytes()
  at = data.index(b'colrnclx') + 8
  path.write_bytes(data[:at] + struct.pack('>HH', *codes) + data[at + 4 :])
  if codes[1] != 13:
    with pytest.raises(ValueError, match='a.avif is an HDR image'):
      image_reader.read_image(path)
  else:
    wide = image_reader.read_image(path)[8, 8].astype(int)
    assert wide[0] > plain[0] + 10 and wide[1] < plain[1] - 10


@pytest.mark.parametrize('photometric, first', [(0, 255), (1, 0)])
def test_deep_tiff_whose_white_is_zero(tmp_path, photometric, first):
  """A TIFF by hand: Pillow writes no other photometric of 16 bits."""
  values = np.array([[0, 20_000, 40_000, 65_535]] * 2, '<u2').tobytes()
  tags = [(256, 4), (257, 2), (258, 16), (259, 1), (262, photometric)]
  tags += [(273, 122), (277, 1), (278, 2), (279, len(values))]
  data = struct.pack('<2sHIH', b'II', 42, 8, len(tags))
  data += b''.join(struct.pack('<HHII', tag, 4, 1, v) for tag, v in tags)
  path = tmp_path / 'a.tiff'
  path.write_bytes(data.ljust(122, b'\0') + values)
  levels = image_reader.read_image(path)[0, :, 0].tolist()
  assert levels == [abs(255 - first - v) for v in (255, 177, 99, 0)]
  assert image_reader.load_mask(path).getpixel((0, 0)) == first
