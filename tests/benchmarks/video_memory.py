"""Peak memory of reading a long video in full HD.

  python tests/benchmarks/video_memory.py

Two minutes at 16 frames a second are encoded, then read in processes of their
own: 17 frames, all frames, and those of a caption. Each peak above the memory
of a process that has read one frame of a small video must stay below 200 MiB.
"""

import argparse
import fractions
import pathlib
import resource
import subprocess
import sys
import tempfile

SECONDS, RATE, SIZE = 120, 16, (1080, 1920)
LIMIT = 200  # MiB
READS = ('17 frames', 'all frames', 'captioner')


def write(path: str, seconds: int, size: tuple[int, int]) -> None:
  """Encodes a gray that grows lighter."""
  import av
  import numpy as np

  with av.open(path, 'w') as container:
    options = {'preset': 'ultrafast', 'crf': '30'}
    stream = container.add_stream('libx264', rate=RATE, options=options)
    stream.height, stream.width = size
    stream.pix_fmt = 'yuv420p'
    for i in range(seconds * RATE):
      image_HWC = np.full((*size, 3), i % 256, np.uint8)
      frame = av.VideoFrame.from_ndarray(image_HWC, format='rgb24')
      frame.pts, frame.time_base = i, fractions.Fraction(1, RATE)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def peak() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(read: str, path: str) -> None:
  """Prints how far a read raises the peak, in MiB."""
  from spacetime.data import recaption
  from spacetime.media import video_reader

  with tempfile.TemporaryDirectory() as folder:
    small = f'{folder}/small.mp4'
    write(small, 1, (64, 64))
    video_reader.read_video(small)
  before = peak()
  if read == 'captioner':
    recaption.sample_frames(pathlib.Path(path), frames=8)
  else:
    sizes = dict(height=64, width=64)
    fps, frames = (17 / SECONDS, 17) if read == '17 frames' else (RATE, None)
    video_reader.read_video(path, frames=frames, fps=fps, **sizes)
  print(peak() - before)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--path', help='this video instead of an encoded one')
  parser.add_argument('--read', choices=READS, help='measure this, here')
  args = parser.parse_args()
  if args.read:
    measure(args.read, args.path)
    return
  with tempfile.TemporaryDirectory() as folder:
    path = args.path or f'{folder}/large.mp4'
    if args.path is None:
      # In a process of its own: a child would inherit its peak.
      code = f'import video_memory as v; v.write({path!r}, {SECONDS}, {SIZE})'
      here = pathlib.Path(__file__).parent
      subprocess.run([sys.executable, '-c', code], check=True, cwd=here)
    failed = False
    for read in READS:
      command = [sys.executable, __file__, '--read', read, '--path', path]
      output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
      ).stdout
      failed |= float(output) > LIMIT
      print(f'{read}: {float(output):.0f} MiB', flush=True)
  if failed:
    raise SystemExit(f'above {LIMIT} MiB')


if __name__ == '__main__':
  main()
