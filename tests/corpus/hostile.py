"""Hostile uploads: bombs, playlists, pickles, polyglots, files that lie.

Each is made by a function without arguments, from a few bytes or a small real
file. FILES names them with the field they are sent in.
"""

import dataclasses
import functools
import gzip
import io
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import av
import numpy as np
from PIL import Image

IMAGE, VIDEO = 'input_reference', 'video'
PIXELS = 2**22  # that the service accepts in all of these tests
FRAMES = 5000  # that it accepts
READ, REFUSED = (200,), (400,)
ANY = (200, 400)  # some decoders conceal the damage


@dataclasses.dataclass(frozen=True)
class Hostile:
  """An upload.

  Attributes:
    name: name of the case; with `filename`, what the client calls the file.
    data: makes its bytes.
    field: field of the request.
    statuses: statuses that are right.
    filename: the client's name of the file.
  """

  name: str
  data: Callable[[], bytes]
  field: str
  statuses: tuple[int, ...] = REFUSED
  filename: str = 'x.mp4'


# -- small real files ----------------------------------------------------------


def _noise(frames=5, height=16, width=24) -> np.ndarray:
  rng = np.random.default_rng(0)
  return rng.integers(0, 255, (frames, height, width, 3), np.uint8)


@functools.cache
def clip(kind='mp4', codec='libx264', frames=5, size=(16, 24), rate=8) -> bytes:
  """A video of noise."""
  buffer = io.BytesIO()
  pixels = _noise(1, *size)[0]
  with av.open(buffer, 'w', format=kind) as container:
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width = size
    stream.pix_fmt = stream.codec.video_formats[0].name
    for i in range(frames):
      frame = av.VideoFrame.from_ndarray(pixels if i % 2 else 255 - pixels)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return buffer.getvalue()


def webm(**options) -> bytes:
  """A WebM file of VP8."""
  return clip('webm', 'libvpx', **options)


def picture(kind='PNG', size=(24, 16), **options) -> bytes:
  """An image."""
  buffer = io.BytesIO()
  Image.new('RGB', size, (200, 0, 0)).save(buffer, kind, **options)
  return buffer.getvalue()


# -- boxes of MP4 --------------------------------------------------------------


def box(kind: bytes, content=b'', *, size: int | None = None) -> bytes:
  """A box of MP4, whose size may lie."""
  size = len(content) + 8 if size is None else size
  return struct.pack('>I', size) + kind + content


FTYP = box(b'ftyp', b'isom\0\0\2\0isomiso2avc1mp41')


def patched(data: bytes, kind: bytes, offset: int, value: bytes) -> bytes:
  """Overwrites bytes of the first box of a kind, counted from its content."""
  at = data.index(kind) + 4 + offset
  return data[:at] + value + data[at + len(value) :]


def nested(depth: int) -> bytes:
  """Boxes inside each other."""
  data = b''
  for _ in range(depth):
    data = box(b'moov', data)
  return FTYP + data


def many_tracks(count: int) -> bytes:
  """A file whose track is repeated."""
  data = clip()
  start = data.index(b'trak') - 4
  (size,) = struct.unpack('>I', data[start : start + 4])
  track = data[start : start + size]
  moov = data.index(b'moov') - 4
  (length,) = struct.unpack('>I', data[moov : moov + 4])
  longer = struct.pack('>I', length + size * count)
  head = data[:moov] + longer + data[moov + 4 : start + size]
  return head + track * count + data[start + size :]


def external_track() -> bytes:
  """A track whose data lie in another file of the machine."""
  data = clip()
  at = data.index(b'dref') - 4
  (size,) = struct.unpack('>I', data[at : at + 4])
  # The flag that says "in this file" is cleared.
  return data[: at + size - 1] + b'\0' + data[at + size :]


# -- chunks of PNG -------------------------------------------------------------


def chunk(kind: bytes, content: bytes = b'') -> bytes:
  """A chunk of PNG."""
  check = zlib.crc32(kind + content)
  return (
    struct.pack('>I', len(content)) + kind + content + struct.pack('>I', check)
  )


def png(width: int, height: int, *chunks: bytes, data=b'', depth=8, color=2):
  """A PNG file with any header."""
  header = struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, 0)
  return b''.join(
    (
      b'\x89PNG\r\n\x1a\n',
      *(chunk(b'IHDR', header), *chunks, chunk(b'IDAT', data)),
      chunk(b'IEND'),
    )
  )


def png_bomb(side: int) -> bytes:
  """A picture of `side` squared pixels in a few kilobytes."""
  row = bytes(1 + side // 8)
  return png(side, side, data=zlib.compress(row * side), depth=1, color=0)


def text_bomb(kind: bytes) -> bytes:
  """A chunk of 64 MB of compressed text, or of a colour profile."""
  content = b'x\0\0' + zlib.compress(bytes(2**26))
  row = zlib.compress((b'\0' + bytes(24 * 3)) * 16)
  return png(24, 16, chunk(kind, content), data=row)


# -- GIF, WebP, EBML -----------------------------------------------------------


def gif(frames: int, *, size=(1, 1), delay=0, end=b';') -> bytes:
  """A GIF that repeats for ever."""
  width, height = size
  head = b'GIF89a' + struct.pack('<HH', width, height) + b'\x80\0\0'
  head += b'\0\0\0\xff\xff\xff' + b'!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0'
  control = b'!\xf9\x04\0' + struct.pack('<H', delay) + b'\0\0'
  image = b',' + struct.pack('<HHHH', 0, 0, 1, 1) + b'\0\x02\x02D\x01\0'
  return head + (control + image) * frames + end


def webp_canvas() -> bytes:
  """A WebP whose canvas is 16 million pixels on each side."""
  content = b'VP8X' + struct.pack('<I', 10) + b'\x02\0\0\0' + b'\xff' * 6
  return b'RIFF' + struct.pack('<I', len(content) + 4) + b'WEBP' + content


def ebml(name: bytes, value: bytes) -> bytes:
  """An element with an eight-byte size."""
  return name + b'\x01' + len(value).to_bytes(7, 'big') + value


EBML = ebml(b'\x1aE\xdf\xa3', ebml(b'B\x82', b'webm'))


def webm_tracks(count: int) -> bytes:
  """A WebM that declares thousands of tracks."""
  tracks = b''.join(
    ebml(
      b'\xae',
      ebml(b'\xd7', (i + 1).to_bytes(2, 'big'))
      + ebml(b'\x83', b'\1')
      + ebml(b'\x86', b'V_VP8')
      + ebml(b'\xe0', ebml(b'\xb0', b'\x18') + ebml(b'\xba', b'\x10')),
    )
    for i in range(count)
  )
  return EBML + ebml(b'\x18S\x80g', ebml(b'\x16T\xaek', tracks))


def webm_duration(value: float) -> bytes:
  """A WebM that states another duration."""
  data = webm()
  at = data.index(b'D\x89\x88') + 3
  return data[:at] + struct.pack('>d', value) + data[at + 8 :]


# -- archives and pickles ------------------------------------------------------


class Command:
  """Runs a command when it is unpickled."""

  def __reduce__(self):
    import os

    return os.system, ('touch /tmp/hostile_pickle_ran',)


@functools.cache
def zip_bomb() -> bytes:
  """An archive of 16 MB in 16 kB."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('data.pkl', bytes(2**24))
  return buffer.getvalue()


def tar() -> bytes:
  """An archive whose member leaves its folder."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as archive:
    archive.addfile(tarfile.TarInfo('../../evil'))
  return buffer.getvalue()


def object_array() -> bytes:
  """A .npy file that holds a pickle."""
  buffer = io.BytesIO()
  np.save(buffer, np.array([Command()], object), allow_pickle=True)
  return buffer.getvalue()


def mutated(data: bytes, seed: int, count: int = 40) -> bytes:
  """A file of which bytes were changed."""
  dice, result = random.Random(seed), bytearray(data)
  for _ in range(count):
    result[dice.randrange(len(result))] = dice.randrange(256)
  return data[:8] + bytes(result[8:])


def noise_after(magic: bytes, seed: int) -> bytes:
  """Random bytes that begin like a file of a known format."""
  return magic + random.Random(seed).randbytes(5000)


def _mutated_clip(seed: int) -> bytes:
  return mutated(clip(), seed)


def _sound() -> bytes:
  buffer = io.BytesIO()
  with av.open(buffer, 'w', format='mp4') as container:
    stream = container.add_stream('aac', rate=8000)
    silence = np.zeros((1, 1024), np.float32)
    frame = av.AudioFrame.from_ndarray(silence, 'fltp', 'mono')
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return buffer.getvalue()


SVG = (
  b'<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/'
  b'xlink"><image x:href="file:///etc/passwd"/></svg>'
)
PLAYLIST = b'#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n'
CONCAT = b"ffconcat version 1.0\nfile 'secret.mp4'\n"
MPD = b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/</BaseURL></MPD>'
SDP = b'v=0\nc=IN IP4 127.0.0.1\nm=video 8000 RTP/AVP 96\n'
POSTSCRIPT = b'%!PS\n(/tmp/x) (w) file closefile\n'


def _case(name, data, field=VIDEO, statuses=REFUSED, filename='x.mp4'):
  if isinstance(data, bytes):
    content = data
    data = lambda: content  # noqa: E731
  return Hostile(name, data, field, statuses, filename)


FILES = (
  # Formats that are not on the list, by content and whatever their name.
  _case('empty', b''),
  _case('text', b'a text'),
  _case('playlist', PLAYLIST),
  _case('concat', CONCAT),
  _case('dash', MPD),
  _case('sdp', SDP),
  _case('playlist_after_ftyp', FTYP + PLAYLIST),
  _case('concat_after_ftyp', FTYP[:8] + CONCAT),
  _case('svg', SVG, IMAGE, filename='x.png'),
  _case('postscript', POSTSCRIPT, IMAGE, filename='x.png'),
  _case('pdf', b'%PDF-1.7\n', IMAGE, filename='x.png'),
  _case('bmp', lambda: picture('BMP'), IMAGE),
  _case('tiff', lambda: picture('TIFF'), IMAGE),
  _case('ico', lambda: picture('ICO'), IMAGE),
  _case('avi', lambda: clip('avi', 'mjpeg'), filename='x.mp4'),
  _case('mpegts', lambda: clip('mpegts')),
  _case('flv', lambda: clip('flv', 'flv')),
  _case('heic', box(b'ftyp', b'heic\0\0\0\0mif1heic')),
  _case('heic_as_image', box(b'ftyp', b'heic\0\0\0\0mif1heic'), IMAGE),
  _case('pickle', lambda: pickle.dumps(Command())),
  _case('object_array', object_array),
  _case('object_array_as_image', object_array, IMAGE, filename='image.npy'),
  _case('zip_bomb', zip_bomb),
  _case('gzip_bomb', lambda: gzip.compress(bytes(2**24)), IMAGE),
  _case('tar', tar),
  _case('elf', b'\x7fELF\2\1\1' + bytes(60), IMAGE),
  _case('png_as_video', picture),
  _case('video_as_png', clip, IMAGE, filename='x.png'),
  # Polyglots: valid, and only their pixels are read.
  _case('png_and_zip', lambda: picture() + zip_bomb(), IMAGE, READ, 'x.zip'),
  _case(
    'png_and_html',
    lambda: picture() + b'<script>alert(1)</script>',
    IMAGE,
    READ,
    'x.html',
  ),
  _case(
    'jpeg_and_pickle',
    lambda: picture('JPEG') + pickle.dumps(Command()),
    IMAGE,
    READ,
    'x.pkl',
  ),
  _case('mp4_and_zip', lambda: clip() + zip_bomb(), statuses=ANY),
  _case('gif_and_script', lambda: gif(2) + b'*/alert(1)', IMAGE, READ, 'x.js'),
  _case(
    'mp4_in_free', lambda: FTYP + box(b'free', CONCAT) + clip(), VIDEO, ANY
  ),
  # Pictures that lie about their size, or are larger than they look.
  _case('png_signature', b'\x89PNG\r\n\x1a\n', IMAGE),
  _case('png_truncated', lambda: picture()[:60], IMAGE),
  _case('png_huge_header', png(30_000, 30_000), IMAGE),
  _case('png_huge_width', png(2**31 - 1, 1), IMAGE),
  _case('png_no_pixels', png(0, 0), IMAGE),
  _case('png_bomb', lambda: png_bomb(9000), IMAGE),
  _case('png_text_bomb', lambda: text_bomb(b'zTXt'), IMAGE, ANY),
  _case('png_profile_bomb', lambda: text_bomb(b'iCCP'), IMAGE, ANY),
  _case(
    'png_animation',
    lambda: png(
      24,
      16,
      chunk(b'acTL', struct.pack('>II', 2**31 - 1, 0)),
      data=zlib.compress((b'\0' + bytes(72)) * 16),
    ),
    IMAGE,
    ANY,
  ),
  _case('png_bad_checks', lambda: mutated(picture(), 1, 8), IMAGE, ANY),
  _case('jpeg_truncated', lambda: picture('JPEG')[:200], IMAGE, ANY),
  _case(
    'jpeg_huge',
    lambda: picture('JPEG').replace(
      struct.pack('>HH', 16, 24), b'\xff\xff\xff\xff', 1
    ),
    IMAGE,
  ),
  _case(
    'jpeg_metadata',
    lambda: picture('JPEG', exif=b'Exif\0\0II*\0\xff\xff\xff\xff'),
    IMAGE,
    ANY,
  ),
  _case('webp_header', b'RIFF\xff\xff\xff\xffWEBP', IMAGE),
  _case('webp_canvas', webp_canvas, IMAGE),
  _case('webp_truncated', lambda: picture('WEBP')[:50], IMAGE),
  _case('gif_huge_screen', gif(1, size=(65535, 65535)), IMAGE),
  _case('gif_without_frames', gif(0), IMAGE),
  # Animations and videos without an end.
  _case('gif_endless', gif(3), VIDEO, READ),
  _case('gif_many_frames', lambda: gif(2 * FRAMES)),
  _case('gif_slow', lambda: gif(4, delay=65535), VIDEO, ANY),
  _case('gif_no_end', gif(3, end=b''), VIDEO, ANY),
  _case('gif_open_block', lambda: gif(1)[:-3] + b'\xff' * 50, VIDEO, ANY),
  _case('gif_huge_video', gif(2, size=(65535, 65535))),
  _case('mp4_many_frames', lambda: clip(frames=FRAMES + 100, size=(16, 16))),
  _case('mp4_many_pixels', lambda: clip(frames=20, size=(512, 512))),
  _case('mp4_truncated', lambda: clip()[:200]),
  _case('mp4_without_index', lambda: FTYP + box(b'mdat', bytes(999))),
  _case('mp4_box_too_long', FTYP + box(b'moov', bytes(50), size=2**32 - 1)),
  _case('mp4_box_of_no_size', FTYP + box(b'moov', bytes(50), size=1)),
  _case('mp4_nested', lambda: nested(20_000)),
  _case('mp4_many_tracks', lambda: many_tracks(3000), VIDEO, ANY),
  _case('mp4_external_track', external_track, VIDEO, ANY),
  _case(
    'mp4_sample_count',
    lambda: patched(clip(), b'stsz', 8, b'\xff\xff\xff\xff'),
    VIDEO,
    ANY,
  ),
  _case(
    'mp4_time_table',
    lambda: patched(clip(), b'stts', 4, b'\xff\xff\xff\xff'),
    VIDEO,
    ANY,
  ),
  _case(
    'mp4_sample_durations',
    lambda: patched(clip(), b'stts', 8, b'\xff\xff\xff\xff\x7f\xff\xff\xff'),
    VIDEO,
    ANY,
  ),
  _case(
    'mp4_no_time_scale',
    lambda: patched(clip(), b'mdhd', 12, bytes(4)),
    VIDEO,
    ANY,
  ),
  _case(
    'mp4_huge_picture',
    lambda: patched(clip(), b'avc1', 24, b'\xff\xff\xff\xff'),
    VIDEO,
    ANY,
  ),
  _case('mp4_audio_only', lambda: _sound()),
  _case('webm_header', EBML),
  _case('webm_endless_size', EBML + b'\x18S\x80g\x01' + b'\xff' * 7),
  _case('webm_tracks', lambda: webm_tracks(3000)),
  _case('webm_long', lambda: webm_duration(1e15), VIDEO, ANY),
  _case('webm_not_a_number', lambda: webm_duration(float('nan')), VIDEO, ANY),
  _case('webm_infinite', lambda: webm_duration(float('inf')), VIDEO, ANY),
  _case('mov_codec', lambda: clip('mov', 'svq1')),
  _case('webm_fast', lambda: webm(rate=10**6), VIDEO, ANY),
  *(
    _case(f'mp4_mutated_{i}', functools.partial(_mutated_clip, i), VIDEO, ANY)
    for i in range(3)
  ),
  *(
    _case(f'noise_{i}', functools.partial(noise_after, magic, i), field)
    for i, (magic, field) in enumerate(
      (
        (FTYP, VIDEO),
        (EBML, VIDEO),
        (b'GIF89a', VIDEO),
        (b'\x89PNG\r\n\x1a\n', IMAGE),
        (b'\xff\xd8\xff\xe0', IMAGE),
        (b'RIFF\x10\0\0\0WEBPVP8 ', IMAGE),
      )
    )
  ),
  # Names.
  _case('name_path', clip, VIDEO, READ, '../../../../tmp/evil.mp4'),
  _case('name_long', clip, VIDEO, READ, 'x' * 2000),
  _case('name_device', clip, VIDEO, READ, '/dev/stdin'),
  _case('name_protocol', clip, VIDEO, READ, 'concat:/etc/passwd|x.mp4'),
)
