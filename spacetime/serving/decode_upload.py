"""Decodes an upload in a process of its own, with limits.

  python -m spacetime.serving.decode_upload KIND FILE OUT MAX_FRAMES MAX_PIXELS

KIND is image or video. Writes uint8 frames (F, H, W, 3) as OUT, a .npy file,
and prints {"frames", "height", "width", "fps"} or {"error"}. Limits of memory,
time, files and network are set before the first byte is read.
"""

import ctypes
import json
import pathlib
import resource
import sys

CPU_SECONDS = 60
BASE_BYTES = 2 * 2**30  # address space of Python, NumPy and FFmpeg
NEW_USER, NEW_NET = 0x10000000, 0x40000000  # flags of unshare(2)
SIGNATURES = {
  b'\x89PNG\r\n\x1a\n': 'png',
  b'\xff\xd8\xff': 'jpeg',
  b'GIF87a': 'gif',
  b'GIF89a': 'gif',
  b'\x1aE\xdf\xa3': 'webm',
}
IMAGES = ('png', 'jpeg', 'webp', 'gif')
VIDEOS = ('mp4', 'webm', 'gif')


def container_of(head: bytes) -> str | None:
  """Name of a file's format by its first 16 bytes, or None."""
  for signature, name in SIGNATURES.items():
    if head.startswith(signature):
      return name
  if head[:4] == b'RIFF' and head[8:12] == b'WEBP':
    return 'webp'
  return 'mp4' if head[4:8] == b'ftyp' else None


def limit(output_bytes: int) -> None:
  """Limits this process: memory, time, size of files, no core, no network."""
  memory = BASE_BYTES + 3 * output_bytes
  limits = {
    resource.RLIMIT_AS: memory,
    resource.RLIMIT_CPU: CPU_SECONDS,
    resource.RLIMIT_FSIZE: output_bytes + 2**20,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 64,
  }
  for name, value in limits.items():
    resource.setrlimit(name, (value, value))
  # A network of its own is empty. Refused where namespaces are switched off:
  # the protocols that FFmpeg may use are limited as well.
  ctypes.CDLL(None).unshare(NEW_USER | NEW_NET)


def decode(kind: str, path, *, max_frames: int, max_pixels: int):
  """Frames of an upload and their rate.

  Args:
    kind: 'image' or 'video'.
    path: the file.
    max_frames: most frames.
    max_pixels: most pixels of all frames.

  Returns:
    uint8 frames_FHWC, frames per second (0 of an image).

  Raises:
    ValueError: another format or codec, too large, or unreadable.
  """
  path = pathlib.Path(path)
  with path.open('rb') as file:
    container = container_of(file.read(16))
  known = IMAGES if kind == 'image' else VIDEOS
  if container not in known:
    raise ValueError(f'expected {", ".join(known)}')
  if kind == 'image':
    return _image(path, max_pixels), 0.0
  return _video(path, max_frames, max_pixels)


def _image(path: pathlib.Path, max_pixels: int):
  from PIL import Image

  from spacetime.media import image_reader

  Image.MAX_IMAGE_PIXELS = None  # the size is checked here, before the pixels
  try:
    with Image.open(path) as image:
      _check_size(image.width, image.height, 1, max_pixels)
    return image_reader.read_image(path)[None]
  except (OSError, SyntaxError, EOFError, MemoryError) as e:
    raise ValueError(f'not a readable image ({type(e).__name__})') from e


def _video(path: pathlib.Path, max_frames: int, max_pixels: int):
  from spacetime.media import video_reader

  try:
    info = video_reader.probe(path)
    frames = max(1, round(info.seconds * info.fps))
    if frames > max_frames:
      raise ValueError(f'expected at most {max_frames} frames, not {frames}')
    _check_size(info.width, info.height, frames, max_pixels)
    # A file may hold more than it states; decoding ends at the limits.
    most = min(max_frames, max_pixels // (info.width * info.height))
    frames_FHWC = video_reader.read_video(path, most=most + 1)
    if len(frames_FHWC) > most:
      raise ValueError(f'expected at most {most} frames of this size')
    return frames_FHWC, info.fps
  except (OSError, MemoryError, OverflowError) as e:
    raise ValueError(f'not a readable video ({type(e).__name__})') from e


def _check_size(width: int, height: int, frames: int, most: int) -> None:
  if width < 1 or height < 1 or width * height * frames > most:
    raise ValueError(
      f'expected at most {most} pixels in all, not {frames} frames of '
      f'{width}x{height}'
    )


def main() -> None:
  """Arguments -> a .npy file and a line of JSON."""
  kind, path, out, max_frames, max_pixels = sys.argv[1:]
  import numpy as np

  limit(3 * int(max_pixels))
  try:
    frames_FHWC, fps = decode(
      kind, path, max_frames=int(max_frames), max_pixels=int(max_pixels)
    )
    np.save(out, np.ascontiguousarray(frames_FHWC), allow_pickle=False)
  except (ValueError, MemoryError) as e:
    message = str(e).replace(path, 'it') or 'too large'
    print(json.dumps({'error': message}))
    return
  frames, height, width, _ = frames_FHWC.shape
  print(
    json.dumps({'frames': frames, 'height': height, 'width': width, 'fps': fps})
  )


if __name__ == '__main__':
  main()
