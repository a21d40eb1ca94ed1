"""Odd videos and images, each written by one function of a path.

MEDIA names them and their outcomes: what is read, or a part of the refusal.
"""

import dataclasses
import fractions
import struct
import zlib
from collections.abc import Callable, Sequence

import av
import numpy as np
from PIL import Image

from spacetime.media import color as video_color
from spacetime.media import video_reader
from tests.helpers import videos

RATE = 10
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3
# Display matrices and EXIF orientations that are the same, and how a picture is
# stored that they show upright.
ORIENTATIONS = {
  1: ((1, 0, 0, 1), lambda x: x),
  2: ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
  3: ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]),
  4: ((1, 0, 0, -1), lambda x: x[::-1]),
  5: ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
  6: ((0, 1, -1, 0), lambda x: np.rot90(x)),
  7: ((0, -1, -1, 0), lambda x: x[::-1, ::-1].swapaxes(0, 1)),
  8: ((0, -1, 1, 0), lambda x: np.rot90(x, -1)),
}


@dataclasses.dataclass(frozen=True)
class Media:
  """A file and its outcome.

  Attributes:
    name: file name.
    write: writes the file.
    size: (height, width) as shown.
    numbers: frames of gray_clip at RATE.
    seconds: duration.
    colors: RGB by (row, column) of the first frame.
    tolerance: of the colours.
    remarks: remarks of probe.
    refusal: part of the message of the ValueError; None if the file is read.
  """

  name: str
  write: Callable
  size: tuple[int, int] | None = None
  numbers: Sequence[int] | None = None
  seconds: float | None = None
  colors: dict = dataclasses.field(default_factory=dict)
  tolerance: int = 4
  remarks: tuple[str, ...] = ()
  refusal: str | None = None


# -- videos --------------------------------------------------------------------


def corners(height=32, width=48) -> np.ndarray:
  """A picture that no rotation or mirroring leaves as it is."""
  image_HWC = np.zeros((height, width, 3), np.uint8)
  image_HWC[: height // 2, : width // 2] = RED
  image_HWC[height // 2 :, : width // 2] = GREEN
  image_HWC[: height // 2, width // 2 :] = BLUE
  return image_HWC


CORNERS = {(4, 4): RED, (28, 4): GREEN, (4, 44): BLUE, (28, 44): (0, 0, 0)}


def disc(pixel_aspect) -> np.ndarray:
  """A disc that is round when it is shown: 40 rows and columns of 64x96."""
  columns = round(96 / pixel_aspect)
  y, x = np.mgrid[:64, :columns]
  inside = ((x + 0.5) * pixel_aspect - 48) ** 2 + (y - 31.5) ** 2 < 20**2
  return np.repeat(np.uint8(255) * inside[..., None], 3, axis=2)


def still(image_HWC, count=4) -> np.ndarray:
  """A video of one picture."""
  return np.stack([image_HWC] * count)


def shown(
  path,
  image_HWC,
  *,
  orientation=1,
  pixel_aspect=fractions.Fraction(1),
  count=4,
):
  """A picture with a display matrix and a pixel aspect; MP4."""
  matrix, stored = ORIENTATIONS[orientation]
  return videos.encode(
    path,
    still(stored(image_HWC), count),
    codec='libx264',
    pixels='yuv444p',
    options={'crf': '4'},
    matrix=matrix,
    pixel_aspect=pixel_aspect,
  )


def flat(path, color, *, matrix, tag=0, range_=1, size=(64, 96)):
  """One colour, converted by a matrix that the file may not state."""
  names = {1: 'ITU709', 6: 'ITU601', 9: 'BT2020'}
  image_HWC = np.broadcast_to(np.uint8(color), (*size, 3))
  return videos.encode(
    path,
    still(image_HWC),
    codec='libx264',
    pixels='yuv444p',
    options={'crf': '1'},
    tags={'colorspace': tag, 'color_range': range_} if tag else {},
    reformat={
      'src_colorspace': names[matrix],
      'dst_colorspace': names[matrix],
      'src_color_range': 2,
      'dst_color_range': range_,
    },
  )


def wide(path, color, *, primaries):
  """One colour of BT.709 in SDR of other primaries."""
  light = (np.array(color) / 255) ** 2.4
  light = np.linalg.solve(video_color.TO_BT709[primaries].astype(float), light)
  signal = np.round(255 * light ** (1 / 2.4))
  image_HWC = np.broadcast_to(np.uint8(signal), (64, 96, 3))
  return videos.encode(
    path,
    still(image_HWC),
    codec='libx264',
    pixels='yuv444p',
    options={'crf': '1'},
    tags={'colorspace': 9, 'color_primaries': primaries, 'color_range': 1},
    reformat={
      'src_colorspace': 'BT2020',
      'dst_colorspace': 'BT2020',
      'src_color_range': 2,
      'dst_color_range': 1,
    },
  )


def hdr(path, signal, *, transfer):
  """A gray of 10 bits in BT.2020, as HDR10 (transfer 16) or HLG (18)."""
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(
      'libx265', rate=RATE, options={'x265-params': 'log-level=none'}
    )
    stream.height, stream.width, stream.pix_fmt = 64, 96, 'yuv420p10le'
    context = stream.codec_context
    context.colorspace = context.color_primaries = 9
    context.color_trc, context.color_range = transfer, 1
    for i in range(4):
      frame = av.VideoFrame(96, 64, 'yuv420p10le')
      for plane, value in zip(
        frame.planes, (round(64 + 876 * signal), 512, 512), strict=True
      ):
        plane.update(np.full(plane.buffer_size // 2, value, '<u2').tobytes())
      frame.pts, frame.time_base = i, fractions.Fraction(1, RATE)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def pq(nits) -> float:
  """The signal of a luminance, SMPTE ST 2084."""
  y = (nits / 10000) ** (2610 / 16384)
  c1, c2, c3 = 3424 / 4096, 2413 / 128, 2392 / 128
  return ((c1 + c2 * y) / (1 + c3 * y)) ** (2523 / 32)


def grays(path, count=12, codec='libx264', **settings):
  """gray_clip in any container."""
  pixels = {'gif': 'gray', 'ffv1': 'bgr0'}.get(codec, 'yuv420p')
  options = {'crf': '4', 'g': '5', 'bf': '2', 'sc_threshold': '0'}
  options = options if codec == 'libx264' else {}
  return videos.encode(
    path,
    videos.gray_clip(count),
    codec=codec,
    pixels=pixels,
    options=options,
    **settings,
  )


def late(path, codec='libx264'):
  """Timestamps begin at ten seconds."""
  return grays(path, codec=codec, times=range(100, 112))


def long_sound(path):
  """Half a second of picture, three of sound."""
  return grays(path, 5, sound=3.0)


def cover(path, *, only_sound=False):
  """An MP4 with cover art, a second video stream of one picture."""
  if only_sound:
    videos.sound_only(path, codec='aac')
  else:
    grays(path, sound=1.0)
  picture = png(np.zeros((8, 8, 3), np.uint8))

  def box(kind, content):
    return struct.pack('>I', 8 + len(content)) + kind + content

  handler = box(b'hdlr', bytes(8) + b'mdirappl' + bytes(9))
  item = box(b'covr', box(b'data', struct.pack('>II', 14, 0) + picture))
  extra = box(b'udta', box(b'meta', bytes(4) + handler + box(b'ilst', item)))
  data = path.read_bytes()
  at = data.index(b'moov') - 4  # the last box, so that no offset moves
  moov = data[at + 8 :]
  tags = moov.rfind(b'udta') - 4
  if tags > 0 and tags + struct.unpack('>I', moov[tags : tags + 4])[0] == len(
    moov
  ):
    moov = moov[:tags]
  path.write_bytes(data[:at] + box(b'moov', moov + extra))
  return path


def two_streams(path, default=0):
  """Grays in two streams of different sizes, one of which is the default."""
  flag = av.stream.Disposition.default
  with av.open(str(path), 'w') as container:
    streams = []
    for i, (height, width) in enumerate(((32, 48), (16, 16))):
      stream = container.add_stream('ffv1', rate=RATE)
      stream.height, stream.width, stream.pix_fmt = height, width, 'bgr0'
      stream.disposition = flag if i == default else 0
      streams.append(stream)
    for i, image_HWC in enumerate(videos.gray_clip(6)):
      for stream in streams:
        frame = av.VideoFrame.from_ndarray(image_HWC, format='rgb24')
        frame = frame.reformat(stream.width, stream.height, 'bgr0')
        frame.pts, frame.time_base = i, fractions.Fraction(1, RATE)
        container.mux(stream.encode(frame))
    for stream in streams:
      container.mux(stream.encode())


def trimmed(path):
  """Without its first 7 frames, as an edit list hides them: they are in the
  file, since frame 5 is the key frame that frame 7 needs."""
  source = grays(path.with_name('source.mp4'))
  with (
    av.open(str(source)) as reader,
    av.open(str(path), 'w', options={'use_editlist': '1'}) as writer,
  ):
    old = reader.streams.video[0]
    new = writer.add_stream_from_template(old)
    start, key = (int(t / old.time_base / RATE) for t in (7, 5))
    for packet in reader.demux(old):
      if packet.dts is not None and packet.pts >= key:
        packet.pts, packet.dts = packet.pts - start, packet.dts - start
        packet.stream = new
        writer.mux(packet)
  source.unlink()
  return path


def cut_short(path, keep):
  """The start of a file whose index comes first."""
  noise = np.random.default_rng(0).integers(0, 255, (20, 64, 96, 3), np.uint8)
  videos.encode(
    path,
    noise,
    codec='libx264',
    pixels='yuv420p',
    container={'movflags': '+faststart'},
  )
  path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def joined(path):
  """Two files of a second each, the bytes of one after those of the other."""
  grays(path, RATE)
  path.write_bytes(2 * path.read_bytes())


def cut_matroska(path):
  """The first half of a file that states its duration at the start."""
  grays(path, 30, codec='ffv1')
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def interlaced(path):
  """Frames of two fields."""
  videos.encode(
    path,
    videos.gray_clip(4),
    codec='libx264',
    pixels='yuv420p',
    options={'x264-params': 'tff=1'},
  )


def see_through(path):
  """Half opaque red, half transparent green, in a GIF."""
  images = []
  for _ in range(3):
    image = Image.new('P', (48, 32))
    image.putpalette([*RED, *GREEN])
    image.paste(1, (24, 0, 48, 32))
    images.append(image)
  images[0].save(
    path, save_all=True, append_images=images[1:], transparency=1, duration=100
  )


def see_through_webm(path, codec):
  """The same in WebM, which keeps alpha beside the frames."""
  image_HWC = np.zeros((32, 48, 4), np.uint8)
  image_HWC[..., :3] = GREEN
  image_HWC[:, :24] = (*RED, 255)
  options = {'auto-alt-ref': '0', 'crf': '4', 'b': '2M', 'cpu-used': '4'}
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=RATE, options=options)
    stream.height, stream.width, stream.pix_fmt = 32, 48, 'yuva420p'
    stream.metadata['alpha_mode'] = '1'
    for i in range(4):
      frame = av.VideoFrame.from_ndarray(image_HWC, format='rgba')
      frame = frame.reformat(format='yuva420p')
      frame.pts, frame.time_base = i, fractions.Fraction(1, RATE)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def playlist(text):
  """A text that names another file, under the name of a video."""

  def write(path):
    grays(path.with_name('secret.mp4'))
    path.write_text(text)

  return write


def bomb(side) -> bytes:
  """A GIF whose header states a large square."""
  size = struct.pack('<HH', side, side)
  return (
    b'GIF89a' + size + b'\xf0\0\0' + bytes(6) + b',' + bytes(4) + size
  ) + b'\0\2\2\x4c\1\0;'


def content(data):
  """A file of some bytes."""
  return lambda path: path.write_bytes(data)


VIDEOS = [
  *(
    Media(
      f'orientation{n}.mp4',
      lambda p, n=n: shown(p, corners(), orientation=n),
      size=(32, 48),
      colors=CORNERS,
      tolerance=12,
    )
    for n in ORIENTATIONS
  ),
  *(
    Media(
      f'{matrix}_{tag}_{range_}_{size[0]}.mp4',
      lambda p, m=matrix, t=tag, r=range_, s=size: flat(
        p, (30, 200, 60), matrix=m, tag=t, range_=r, size=s
      ),
      size=size,
      colors={(20, 20): (30, 200, 60)},
    )
    for matrix, tag, range_, size in (
      (6, 0, 1, (64, 96)),
      (6, 0, 1, (576, 720)),
      (1, 0, 1, (720, 1280)),
      (1, 0, 1, (578, 720)),
      (1, 1, 1, (64, 96)),
      (1, 1, 2, (64, 96)),
      (6, 6, 1, (720, 1280)),
      (6, 5, 2, (64, 96)),
      (9, 9, 1, (64, 96)),
    )
  ),
  *(
    Media(
      f'primaries{code}.mp4',
      lambda p, c=code: wide(p, (120, 180, 60), primaries=c),
      colors={(20, 20): (120, 180, 60)},
    )
    for code in (9, 12)
  ),
  Media(
    'ycgco.mp4',
    lambda p: flat(p, (30, 200, 60), matrix=1, tag=8),
    refusal='matrix is code 8',
  ),
  *(
    Media(
      f'{name}.mp4',
      lambda p, s=signal, t=transfer: hdr(p, s, transfer=t),
      colors={(20, 20): (level,) * 3},
      remarks=(video_reader.HDR,),
    )
    for name, signal, transfer, level in (
      ('pq_white', pq(203), 16, 249),
      ('pq_black', 0, 16, 0),
      ('pq_peak', pq(1000), 16, 254),
      # 0.255 * (100 / 203) ** (1 / 2.4)
      ('pq_100', pq(100), 16, 190),
      ('hlg_white', 0.75, 18, 249),
      ('hlg_black', 0, 18, 0),
      ('hlg_peak', 1, 18, 254),
    )
  ),
  *(
    Media(name, grays, numbers=range(12), seconds=1.2, size=(32, 48))
    for name in ('a.mp4', 'a.mkv', 'a.ts', 'a.mov', 'a.flv')
  ),
  Media('raw.m2v', lambda p: grays(p, codec='mpeg2video'), seconds=1.2),
  *(
    Media(name, late, numbers=range(12), seconds=1.2)
    for name in ('late.mp4', 'late.mkv', 'late.ts', 'late.mov')
  ),
  Media(
    'late.mpg', lambda p: late(p, 'mpeg2video'), seconds=1.2, size=(32, 48)
  ),
  Media('sound.mkv', long_sound, numbers=range(5), seconds=0.5),
  Media('sound.mp4', long_sound, numbers=range(5), seconds=0.5),
  Media('cover.mp4', cover, numbers=range(12), seconds=1.2, size=(32, 48)),
  Media(
    'song.mp4', lambda p: cover(p, only_sound=True), refusal='cover picture'
  ),
  Media(
    'two.mkv',
    two_streams,
    numbers=range(6),
    size=(32, 48),
    remarks=(video_reader.SEVERAL,),
  ),
  Media(
    'default.mkv',
    lambda p: two_streams(p, default=1),
    numbers=range(6),
    seconds=0.6,
    size=(16, 16),
    remarks=(video_reader.SEVERAL,),
  ),
  Media('trimmed.mp4', trimmed, numbers=range(7, 12), seconds=0.5),
  Media('cut.mp4', lambda p: cut_short(p, 0.3), refusal='cannot be read'),
  Media('cut.mp4', lambda p: cut_short(p, 0.8), refusal='cannot be read'),
  Media('joined.ts', joined, refusal='go back from 0.900 to'),
  Media('half.mkv', cut_matroska, remarks=(video_reader.CUT_SHORT,)),
  Media('interlaced.mp4', interlaced, remarks=(video_reader.INTERLACED,)),
  Media(
    'see_through.gif',
    see_through,
    colors={(16, 12): RED, (16, 36): WHITE},
    remarks=(video_reader.TRANSPARENT,),
  ),
  *(
    Media(
      f'{codec}.webm',
      lambda p, c=codec: see_through_webm(p, c),
      seconds=0.4,
      colors={(16, 12): RED, (16, 36): WHITE},
      tolerance=8,
      remarks=(video_reader.TRANSPARENT,),
    )
    for codec in ('libvpx', 'libvpx-vp9')
  ),
  Media(
    'concat.mp4',
    playlist("ffconcat version 1.0\nfile 'secret.mp4'\n"),
    refusal='expected a container of mov',
  ),
  Media(
    'hls.mp4',
    playlist(
      '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.mp4\n'
      '#EXT-X-ENDLIST\n'
    ),
    refusal='cannot be read',
  ),
  Media(
    'magic.avi',
    lambda p: videos.encode(
      p, videos.gray_clip(3), codec='magicyuv', pixels='gbrp'
    ),
    refusal='codec magicyuv; expected one of h264',
  ),
  Media('bomb.gif', content(bomb(9000)), refusal='9000x9000 pixels; expected'),
  Media('bomb.gif', content(bomb(12000)), refusal='cannot be read as a video'),
  Media('empty.mp4', content(b''), refusal='cannot be read'),
  Media('page.mp4', content(b'<html>404</html>'), refusal='cannot be read'),
  Media('folder.mp4', lambda p: p.mkdir(), refusal='a folder: expected'),
  Media('song.mkv', videos.sound_only, refusal='has no video stream'),
]


# -- images --------------------------------------------------------------------


def png(image, *, clear=None, size=None) -> bytes:
  """A PNG of 8 or 16 bits: (H, W) gray or (H, W, C) with C of 2, 3 or 4.

  Args:
    image: uint8 or uint16.
    clear: the transparent colour, as many numbers as there are channels.
    size: height and width that the header states.
  """

  def chunk(kind, data):
    check = zlib.crc32(kind + data)
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', check)

  image_HWC = image if image.ndim == 3 else image[..., None]
  height, width, channels = image_HWC.shape
  kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
  bits = 8 * image.dtype.itemsize
  rows = image_HWC.astype('>u2' if bits == 16 else np.uint8).reshape(height, -1)
  data = b''.join(b'\0' + row.tobytes() for row in rows)
  height, width = size or (height, width)
  parts = [
    chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0))
  ]
  if clear is not None:
    parts.append(chunk(b'tRNS', struct.pack(f'>{len(clear)}H', *clear)))
  parts += [chunk(b'IDAT', zlib.compress(data)), chunk(b'IEND', b'')]
  return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def ramp(top, dtype=np.uint16) -> np.ndarray:
  """0 to `top` along 64 columns, (64, 64)."""
  return np.tile(np.linspace(0, top, 64).astype(dtype), (64, 1))


RAMP = {(5, 0): (0,) * 3, (5, 32): (130,) * 3, (5, 63): WHITE}


def saved(image, mode=None, **options):
  """An array, or an image of Pillow, saved by Pillow."""

  def write(path):
    picture = image if isinstance(image, Image.Image) else None
    picture = picture or Image.fromarray(image, mode)
    picture.save(path, **options)

  return write


def oriented(orientation):
  """The corners, stored as EXIF's orientation says."""

  def write(path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = ORIENTATIONS[orientation][1](corners())
    options = {} if path.suffix == '.tiff' else {'quality': 95}
    options |= {'lossless': True} if path.suffix == '.webp' else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(
      path, exif=exif, **options
    )

  return write


def cutout(mode='RGBA') -> Image.Image:
  """A red square on a ground that is transparent and, below that, green."""
  image = Image.new('RGBA', (64, 64), (*GREEN, 0))
  image.paste((*RED, 255), (16, 16, 48, 48))
  return image.convert(mode)


CUTOUT = {(5, 5): WHITE, (30, 30): RED}


def rgb(levels, dtype) -> np.ndarray:
  """One colour, (64, 64, C)."""
  return np.tile(np.array(levels, dtype), (64, 64, 1))


def two_colors(first, second, dtype) -> np.ndarray:
  """Left and right halves."""
  image = rgb(first, dtype)
  image[:, 32:] = second
  return image


def palette(path):
  """Red and a transparent green, by a palette."""
  image = Image.new('P', (64, 64), 1)
  image.putpalette([*RED, *GREEN])
  image.paste(0, (16, 16, 48, 48))
  image.save(path, transparency=1)


def tiff12() -> bytes:
  """Two pixels of 12 bits, half and white, in a TIFF."""
  values = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1}
  values[279] = 3
  entries = b''.join(
    struct.pack('<HHII', tag, 3, 1, value) for tag, value in values.items()
  )
  head = b'II*\0' + struct.pack('<I', 12) + b'\x80\x0f\xff\0'
  return head + struct.pack('<H', len(values)) + entries + bytes(4)


def floats(path):
  """RGB of floats."""
  import tifffile

  tifffile.imwrite(path, rgb((0.5, 0.5, 0.5), np.float32), photometric='rgb')


IMAGES = [
  Media('gray16.png', content(png(ramp(65535))), (64, 64), colors=RAMP),
  Media('gray16.tiff', saved(ramp(65535)), colors=RAMP),
  Media(
    'gray16.pgm',
    content(b'P5 64 64 65535\n' + ramp(65535).astype('>u2').tobytes()),
    colors=RAMP,
  ),
  Media(
    'rgb16.png',
    content(png(rgb((65535, 32896, 257), np.uint16))),
    colors={(5, 5): (255, 128, 1)},
    tolerance=1,
  ),
  Media(
    'ga16.png',
    content(png(two_colors((257, 65535), (257, 0), np.uint16))),
    colors={(5, 5): (1, 1, 1), (5, 60): WHITE},
  ),
  Media(
    'rgba16.png',
    content(png(two_colors((65535, 0, 0, 65535), (0, 65535, 0, 0), np.uint16))),
    colors={(5, 5): RED, (5, 60): WHITE},
  ),
  Media(
    'clear16.png',
    content(png(two_colors((0,), (300,), np.uint16), clear=(300,))),
    colors={(5, 5): (0, 0, 0), (5, 60): WHITE},
  ),
  Media(
    'clear_gray.png',
    content(png(two_colors((0,), (30,), np.uint8), clear=(30,))),
    colors={(5, 5): (0, 0, 0), (5, 60): WHITE},
  ),
  Media(
    'clear_rgb.png',
    content(png(two_colors(RED, GREEN, np.uint8), clear=GREEN)),
    colors={(5, 5): RED, (5, 60): WHITE},
  ),
  Media(
    'clear_rgb16.png',
    content(
      png(
        two_colors((65535, 0, 0), (0, 65535, 7), np.uint16),
        clear=(0, 65535, 7),
      )
    ),
    colors={(5, 5): RED, (5, 60): WHITE},
  ),
  Media('float.tiff', saved(ramp(1, np.float32)), colors=RAMP),
  Media('light.tiff', saved(ramp(255, np.float32)), refusal='floats are from'),
  Media(
    'nan.tiff', saved(ramp(np.nan, np.float32)), refusal='floats are from nan'
  ),
  Media('rgb_float.tiff', floats, refusal='cannot be read as an image'),
  Media(
    'int32.tiff',
    saved(ramp(2**31 - 1, np.int32)),
    refusal='integers have 32 bits',
  ),
  Media('small_int32.tiff', saved(ramp(255, np.int32)), refusal='have 32 bits'),
  Media(
    'gray12.tiff',
    content(tiff12()),
    size=(1, 2),
    colors={(0, 0): (128,) * 3, (0, 1): WHITE},
    tolerance=1,
  ),
  Media('alpha.png', saved(cutout()), colors=CUTOUT),
  Media('alpha.webp', saved(cutout(), lossless=True), colors=CUTOUT),
  Media('alpha.tiff', saved(cutout()), colors=CUTOUT),
  Media(
    'gray_alpha.png',
    saved(cutout('LA')),
    colors={(5, 5): WHITE, (30, 30): (76,) * 3},
  ),
  Media(
    'half.png',
    saved(rgb((255, 0, 0, 128), np.uint8)),
    colors={(5, 5): (255, 127, 127)},
    tolerance=1,
  ),
  Media('palette.png', palette, colors=CUTOUT),
  Media('palette.gif', palette, colors=CUTOUT),
  Media(
    'cmyk.jpg',
    saved(Image.new('RGB', (64, 64), (200, 60, 30)).convert('CMYK')),
    colors={(5, 5): (200, 60, 30)},
  ),
  Media('bits.png', saved(Image.new('1', (64, 64), 1)), colors={(5, 5): WHITE}),
  *(
    Media(
      f'orientation{n}{suffix}',
      oriented(n),
      size=(32, 48),
      colors=CORNERS,
      tolerance=12,
    )
    for n in ORIENTATIONS
    for suffix in ('.jpg', '.png', '.webp', '.tiff')
  ),
  Media(
    'dpi.png', saved(corners(), dpi=(72, 144)), size=(32, 48), colors=CORNERS
  ),
  Media(
    'large.png',
    content(png(np.zeros((1, 1), np.uint8), size=(9000, 9000))),
    refusal='9000x9000 pixels; expected at most',
  ),
  Media(
    'bomb.png',
    content(png(np.zeros((1, 1), np.uint8), size=(12000, 12000))),
    refusal='12000x12000 pixels; expected at most',
  ),
  Media('bomb.gif', content(bomb(12000)), refusal='12000x12000 pixels'),
  Media('bomb.gif', content(bomb(20000)), refusal='decompression bomb'),
  Media(
    'cut.png', content(png(ramp(255, np.uint8))[:90]), refusal='cannot be read'
  ),
  Media(
    'page.eps',
    content(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n'),
    refusal='cannot be read as an image',
  ),
  Media('text.png', content(b'no image'), refusal='cannot be read'),
  Media('folder.png', lambda p: p.mkdir(), refusal='a folder: expected'),
]
